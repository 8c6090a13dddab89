"""P-40 to P-42: a stuck client's key is found, explained and freed on the admin site, in a browser."""

# ruff: noqa: E402 (Django has to be set up before what needs its settings is imported)
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.django_project import set_up

set_up()

from django.contrib.auth.models import User
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.http import HttpRequest, JsonResponse
from django.test.testcases import LiveServerThread
from django.views.decorators.csrf import csrf_exempt

from open_idempotency import idem
from open_idempotency.backend import Get
from open_idempotency.backends.django_orm import DjangoBackend
from tests.django_project.admin_site import EVERY, LIST, PROJECT, admin_site, staff
from tests.django_project.calls import KEY, OURS
from tests.operations.stores import Maker, begun
from tests.support.browser import SECONDS, Browser

PASSWORD = "a password for tests only"
TOKEN = "Bearer ann"


class Shop:
    """A shop that charges a card, with a policy that does not resume abandoned requests."""

    def __init__(self) -> None:
        self.charged = 0
        self.url = ""

    def view(self, request: HttpRequest) -> JsonResponse:
        """Charge in one stage."""
        return JsonResponse({"charge": idem.run("charge", self._charge, external=True)}, status=201)

    def _charge(self) -> str:
        self.charged += 1
        return "ch_2"

    def post(self) -> httpx.Response:
        """The client's request, with its key."""
        headers = {"Idempotency-Key": f'"{KEY}"', "Authorization": TOKEN}
        return httpx.post(f"{self.url}/0", json={"amount": 10}, headers=headers, timeout=SECONDS)


@pytest.fixture
def shop() -> Iterator[Shop]:
    """The shop on its own server, with a worker that was killed during a charge, some time ago."""
    shop = Shop()
    settings = {"MIDDLEWARE": [*PROJECT["MIDDLEWARE"], OURS], "IDEMPOTENCY_ON_ABANDONED": "reject"}
    with admin_site(csrf_exempt(shop.view), **settings):
        server = LiveServerThread("127.0.0.1", StaticFilesHandler)
        server.daemon = True
        server.start()
        try:
            assert server.is_ready.wait(SECONDS)
            assert server.error is None, server.error
            shop.url = f"http://127.0.0.1:{server.port}"
            _kill_a_worker(shop)
            yield shop
        finally:
            server.terminate()
            server.join(SECONDS)


def _kill_a_worker(shop: Shop) -> None:
    with DjangoBackend() as backend:
        for record in list(backend.scan()):
            backend.delete(record.record_id)
        assert shop.post().status_code == 201
        (record,) = backend.scan()
        # What a killed worker leaves behind: the record of this very request, its lease ended, the charge begun.
        assert backend.delete(record.record_id)
        maker = Maker(backend)
        lease = maker.lease(0.001, record_id=record.record_id, fingerprint=record.fingerprint)
        maker.save(lease, begun("charge"))
    shop.charged = 0


class Operator:
    """A person at a browser, who reads, types and clicks."""

    def __init__(self, browser: Browser, site: str) -> None:
        self._browser, self._site = browser, site

    def log_in(self, user: User, password: str) -> None:
        """Log in, and open the list of records."""
        self._browser.show(f"{self._site}{LIST}")  # a cookie can be set only for the open page
        self._browser.driver.delete_all_cookies()
        self._browser.show(f"{self._site}{LIST}")
        self.type("username", user.get_username())
        self.type("password", password)
        self.click("input[type=submit]")

    def type(self, field: str, text: str) -> None:
        """Type into a field of a form."""
        self._one(f"#content [name={field}]").send_keys(text)

    def click(self, selector: str) -> None:
        """Click, and wait for the next page."""
        self._browser.run("window.leaving = true")
        self._one(selector).click()
        self._browser.wait_for("return window.leaving === undefined && document.readyState === 'complete'")

    def choose(self, selector: str) -> None:
        """Click an element that loads no page."""
        self._one(selector).click()

    @property
    def text(self) -> str:
        """The text of the page."""
        return str(self._one("#container").text)

    def has(self, selector: str) -> bool:
        """Whether the page has such an element."""
        return bool(self._browser.driver.find_elements("css selector", selector))

    def _one(self, selector: str) -> Any:
        return self._browser.driver.find_element("css selector", selector)


@pytest.fixture
def operator(browser: Browser, shop: Shop) -> Operator:
    """The operator, at the list of records."""
    operator = Operator(browser, shop.url)
    operator.log_in(staff(*EVERY, password=PASSWORD), PASSWORD)
    return operator


def _find(operator: Operator) -> None:
    operator.click(".object-tools a")
    operator.type("key", KEY)
    operator.type("authorization", TOKEN)
    operator.click("#find input[type=submit]")


def test_a_stuck_key_is_found_explained_and_freed(shop: Shop, operator: Operator) -> None:
    """The provider confirms the charge: the retry gets it, and does not charge again."""
    assert shop.post().status_code == 409
    _find(operator)
    assert "abandoned, in doubt" in operator.text
    assert "Stage 'charge' is in doubt" in operator.text
    operator.click("#stages a")
    assert "what happened to stage charge" in operator.text
    operator.choose("[name=outcome][value=found]")
    operator.type("value", '"ch_1"')
    operator.click("#confirm input[type=submit]")
    assert "Resolved stage charge" in operator.text
    assert "the key is free" in operator.text
    assert shop.post().json() == {"charge": "ch_1"}
    assert shop.charged == 0


def test_a_stale_page_is_refused_with_its_reason(shop: Shop, operator: Operator) -> None:
    """A colleague has freed the key meanwhile, and the client's retry has begun."""
    _find(operator)
    operator.click("#operations a[href$='release/']")
    with DjangoBackend() as backend:
        (record,) = backend.scan()
        maker = Maker(backend)
        maker.lease(record_id=record.record_id, fingerprint=record.fingerprint)
        held = backend.get(Get(record.record_id))
        operator.click("#confirm input[type=submit]")
        assert "has changed since this page was made" in operator.text
        assert "its lease lasts" in operator.text
        assert backend.get(Get(record.record_id)) == held


def test_who_may_only_look_is_offered_nothing_else(shop: Shop, operator: Operator) -> None:
    """With the view permission only, the page explains and has no buttons."""
    operator.log_in(staff("view_record", password=PASSWORD), PASSWORD)
    _find(operator)
    assert "Stage 'charge' is in doubt" in operator.text
    assert not operator.has("#operations a")
    assert not operator.has("#stages a")
