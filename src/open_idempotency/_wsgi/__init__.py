"""What the sync adapters share: a WSGI environ read as a request, and one protected run of a handler."""
