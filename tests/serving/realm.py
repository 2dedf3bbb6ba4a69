"""A login server that answers MONAI Label's questions as Keycloak does: its public key, where tokens are, and tokens for one user."""

import base64
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

USER, PASSWORD = "ann", "correct horse"
ROLES = ["monailabel-user", "monailabel-annotator"]
VALIDITY_S = 300


@contextmanager
def realm():
    """Run the login server, and yield the settings (environment variables) with which MONAI Label asks it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            is_question_for_addresses = self.path.endswith("openid-configuration")
            self.answer(200, {"token_endpoint": f"{uri}/token"} if is_question_for_addresses else {"public_key": base64.b64encode(public).decode()})

        def do_POST(self):
            fields = {k: v[0] for k, v in parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()).items()}
            if (fields.get("username"), fields.get("password")) != (USER, PASSWORD) and fields.get("refresh_token") != "refresh":
                return self.answer(401, {"error": "invalid_grant"})
            claims = {"preferred_username": USER, "realm_access": {"roles": ROLES}, "exp": int(time.time()) + VALIDITY_S}
            tokens = {"access_token": jwt.encode(claims, key, "RS256"), "refresh_token": "refresh", "expires_in": VALIDITY_S}
            self.answer(200, tokens)

        def answer(self, status, content):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    uri = f"http://127.0.0.1:{server.server_port}/realms/monailabel"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": uri}
    finally:
        server.shutdown()
        server.server_close()
