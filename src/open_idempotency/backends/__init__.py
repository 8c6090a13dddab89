"""The backends, each in a package of its own that is imported only when it is used; see ``registry``."""
