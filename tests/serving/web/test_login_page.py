"""The login form for browsers, with a realm that is played by the test."""

import pytest
import requests
from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient
from monailabel.config import settings

from lib.serving.web import login_page

TOKENS = {"access_token": "a.b.c", "refresh_token": "r", "expires_in": 60}


@pytest.fixture
def asked(monkeypatch):
    """The fields of all requests to the realm, which knows one user."""
    fields_of_requests = []

    def post(url, data, timeout):
        fields_of_requests.append(data)
        answer = requests.Response()
        answer.status_code = 200 if data.get("password") == "right" or data.get("refresh_token") == "r" else 401
        answer._content = requests.compat.json.dumps(TOKENS if answer.ok else {"error": "invalid_grant"}).encode()
        return answer

    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(login_page, "token_uri", lambda: "https://login.example.org/token")
    monkeypatch.setattr(login_page.requests, "post", post)
    return fields_of_requests


@pytest.fixture
def client(asked):
    app = FastAPI()
    app.include_router(login_page.router)
    app.add_middleware(login_page.CookieToken)

    @app.get("/sam2/")
    def page(request: Request):
        return {"authorization": request.headers.get("authorization")}

    @app.exception_handler(HTTPException)
    async def answer(request, error):
        return login_page.login_redirect(request) or login_page.Response(status_code=error.status_code)

    @app.get("/sam2/ohif")
    def refused():
        raise HTTPException(401)

    return TestClient(app, follow_redirects=False)


def test_a_page_leads_to_the_form_and_the_form_back_to_the_page(client, asked):
    refused = client.get("/sam2/ohif?image=a&slice=3", headers={"accept": "text/html"})
    assert refused.status_code == 303
    form = client.get(refused.headers["location"])
    assert 'value="/sam2/ohif?image=a&amp;slice=3"' in form.text
    answer = client.post("/sam2/login", data={"username": "ann", "password": "right", "next": "/sam2/ohif?image=a&slice=3"})
    assert answer.status_code == 303 and answer.headers["location"] == "/sam2/ohif?image=a&slice=3"
    assert asked[-1]["grant_type"] == "password" and "right" not in answer.text
    assert "httponly" in answer.headers["set-cookie"].lower() and "samesite=lax" in answer.headers["set-cookie"].lower()
    assert client.get("/sam2/").json() == {"authorization": "Bearer a.b.c"}
    assert client.get("/sam2/", headers={"authorization": "Bearer own"}).json() == {"authorization": "Bearer own"}
    assert client.post("/sam2/login/refresh").status_code == 204 and asked[-1]["refresh_token"] == "r"


def test_scripts_get_a_status_instead_of_a_form(client):
    assert client.get("/sam2/ohif", headers={"accept": "application/json"}).status_code == 401


def test_a_wrong_password_gets_a_sentence_and_no_cookie(client):
    answer = client.post("/sam2/login", data={"username": "ann", "password": "wrong", "next": "/sam2/"})
    assert answer.status_code == 401 and "not accepted" in answer.text and "set-cookie" not in answer.headers


@pytest.mark.parametrize("target", ["https://elsewhere.example/", "//elsewhere.example/", "/\\elsewhere.example", "javascript:alert(1)", ""])
def test_the_form_leads_nowhere_else(client, target):
    answer = client.post("/sam2/login", data={"username": "ann", "password": "right", "next": target})
    assert answer.headers["location"] == "/sam2/"


def test_a_silent_realm_is_reported(client, monkeypatch):
    def post(*args, **options):
        raise requests.ConnectionError

    monkeypatch.setattr(login_page.requests, "post", post)
    answer = client.post("/sam2/login", data={"username": "ann", "password": "right", "next": "/sam2/"})
    assert answer.status_code == 502 and "does not answer" in answer.text
