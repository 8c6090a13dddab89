"""No views: each suite brings its own, by ``ROOT_URLCONF`` or ``request.urlconf``."""

urlpatterns: list[object] = []
