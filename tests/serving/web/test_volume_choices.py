"""Choosing, skipping and rejecting volumes by HTTP and on the page, and browsers as clients, with a stand-in for the app."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.endpoints import activelearning

from lib.serving.web import ohif_files, routes, volume_choices
from lib.serving.web.client_identity import COOKIE
from tests.serving.web.test_volume_page import App, Store, note_round, studies  # noqa: F401


@pytest.fixture
def app(studies, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_CACHE_PATH", str(tmp_path / "cache"))
    app = App(studies, Store)
    for module in (routes, volume_choices, activelearning):
        monkeypatch.setattr(module, "app_instance", lambda: app)
    return app


@pytest.fixture
def browser(app):
    """Return a function that opens a new browser, which has no cookie yet."""
    server = FastAPI()
    server.include_router(routes.router)
    server.include_router(volume_choices.router)
    return lambda: TestClient(server)


def change(client, action, image="a", **fields):
    return client.post("/sam2/choices", data={"image": image, "action": action, **fields})


def ask(client, **fields):
    return client.post("/activelearning/worst_slice", json=fields).json()


def test_browsers_are_as_many_clients_as_they_are(browser):
    """OHIF sends no client id: the cookie that a page gives to the browser tells its users apart."""
    users = [browser() for _ in range(3)]
    for user in users:
        assert user.get("/sam2/").cookies[COOKIE].startswith("browser-")
        assert user.get("/sam2/").cookies[COOKIE] == user.cookies[COOKIE], "it stays"
    assert {ask(user)["id"] for user in users} == {"a", "b", "c"}


def test_whoever_opens_ohif_without_a_page_of_the_app_gets_a_name_as_well(app):
    server = FastAPI()
    server.include_router(ohif_files.router)
    client = TestClient(server)
    assert client.get("/ohif/").cookies[COOKIE].startswith("browser-") and COOKIE not in client.get("/ohif/app.css").cookies


def test_a_volume_that_is_opened_in_ohif_is_lent_to_that_browser(browser):
    anna, ben = browser(), browser()
    assert anna.get("/sam2/ohif?image=c").status_code == 200
    ben.get("/sam2/")
    assert ask(anna)["id"] == "c" and {ask(ben)["id"], ask(browser(), client_id="cleo")["id"]} == {"a", "b"}


def test_volumes_can_be_chosen_skipped_marked_as_bad_and_taken_back_by_http(browser, app):
    client = browser()
    answer = change(client, "skip", reason="not my organ", client_id="anna")
    assert answer.status_code == 200 and answer.json()["skipped"]["reason"] == "not my organ"
    assert change(client, "reject", "b", reason="motion", client_id="ben").json()["rejected"]["client"] == "ben"
    assert ask(client, client_id="anna")["id"] == "c" and ask(client, client_id="ben")["id"] == "a"
    assert client.get("/sam2/choices").json()["skipped"].keys() == {"a"}
    assert change(client, "take_back", "b", client_id="anna").json()["rejected"] is None
    assert change(client, "choose", "b", client_id="anna").json()["is_lent_to_you"]
    assert ask(client, client_id="anna")["id"] == "b"
    refused = change(client, "choose", "b", client_id="ben")
    assert refused.status_code == 400 and "lent to another annotator" in refused.json()["detail"]


def test_the_page_shows_choices_and_its_forms_change_them(browser, app):
    anna, ben = browser(), browser()
    anna.get("/sam2/"), ben.get("/sam2/")
    form = {"image": "a", "action": "reject", "reason": "<b>motion"}
    sent = anna.post("/sam2/choices", data=form, headers={"accept": "text/html", "sec-fetch-site": "same-origin"}, follow_redirects=False)
    assert sent.status_code == 303 and sent.headers["location"] == "/sam2/"
    change(anna, "skip", "b", reason="no time")
    change(anna, "choose", "c")
    text, other = anna.get("/sam2/").text, ben.get("/sam2/").text
    assert "bad: &lt;b&gt;motion" in text and "not for you: no time" in text and "yours at present" in text
    assert "bad: &lt;b&gt;motion" in other and "no time" not in other and "lent to another annotator" in other
    assert text.index(">c<") < text.index(">a<"), "bad volumes come last"
    assert "form-action 'self'" in anna.get("/sam2/").headers["content-security-policy"]


def test_forms_of_other_sites_are_refused(browser, app):
    form = {"image": "a", "action": "reject"}
    assert browser().post("/sam2/choices", data=form, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert app.lending.state()["rejected"] == {}


@pytest.mark.parametrize("image, action, status", [("nobody", "skip", 404), ("/etc/passwd", "skip", 404), ("a", "delete", 422), ("a", "lend", 422)])
def test_wrong_choices_get_a_sentence(browser, image, action, status):
    answer = change(browser(), action, image)
    assert answer.status_code == status and answer.json()["detail"].endswith(".")


def test_what_cannot_be_read_is_passed_over_and_reported_on_the_page(browser, app, studies):  # noqa: F811
    (studies / "a.nii.gz").write_bytes((studies / "a.nii.gz").read_bytes()[:-300])
    client = browser()
    client.get("/sam2/")
    answer = ask(client)
    assert answer["id"] == "b" and "cannot be read: a (" in answer["reason"] and answer["passed_over"][0]["id"] == "a"
    assert "Next Sample passes over it: a.nii.gz" in client.get("/sam2/").text
    for name in "bc":
        change(client, "skip", name)
    nothing = client.post("/activelearning/worst_slice", json={})
    assert nothing.status_code == 400 and "a (" in nothing.json()["detail"]


def test_two_annotators_of_one_structure_are_told_apart_on_the_page(browser, app):
    for client in ("anna", "ben"):
        note_round(app, "a", client=client)
    text = browser().get("/sam2/").text
    assert "<h3>spleen</h3>" in text and "<h3>spleen by ben</h3>" in text
