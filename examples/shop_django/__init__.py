"""The shop as a Django application: the same tables as in ``examples.shop``, through the ORM."""
