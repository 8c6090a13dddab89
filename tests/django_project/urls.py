"""No views: each suite sets its own, by ``ROOT_URLCONF`` or ``request.urlconf``."""

urlpatterns: list[object] = []
