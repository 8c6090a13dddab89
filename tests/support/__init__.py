"""What tests of several suites share: servers, browsers."""
