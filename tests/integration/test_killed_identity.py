"""SIGKILL of identity while it owes others word: apps that must hear of a logout."""

import asyncio
import html
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import aiohttp
import asyncpg
import jwt
import pytest
from aiohttp import web
from customers import PASSWORD, call

if TYPE_CHECKING:
    from stack import Stack

pytestmark = pytest.mark.integration

VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"  # RFC 7636, appendix B
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


class App:
    """A platform's app that hears of logouts, once it listens."""

    def __init__(self, platform: str) -> None:
        self.client_id, self.platform = f"{platform}-app", platform
        self.callback = f"https://{platform}.test/callback"
        self.listens = False
        self.heard: list[dict[str, str]] = []
        self.asked = asyncio.Event()
        self.url = ""

    async def serve(self) -> web.AppRunner:
        async def hear(request: web.Request) -> web.Response:
            token = str((await request.post())["logout_token"])
            self.heard.append(jwt.decode(token, options={"verify_signature": False}))
            self.asked.set()
            if not self.listens:
                await asyncio.sleep(60)  # and the connection breaks meanwhile
            return web.Response()

        server = web.Application()
        server.router.add_post("/backchannel", hear)
        runner = web.AppRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/backchannel"
        return runner

    def registration(self) -> dict[str, object]:
        return {
            "client_id": self.client_id,
            "name": self.platform,
            "platform": self.platform,
            "redirect_uris": [self.callback],
            "backchannel_logout_uri": self.url,
        }

    async def sign_in(self, browser: aiohttp.ClientSession, origin: str, email: str) -> str:
        """An access token for whoever is signed in with the browser, or signs in now."""
        query = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.callback,
            "scope": "openid",
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
        }
        async with browser.get(f"{origin}/oauth/authorize", params=query, allow_redirects=False) as page:
            if page.status == 200:
                found = re.search(r'name="request" value="([^"]+)"', await page.text())
                assert found
                fields = {"request": html.unescape(found[1]), "email": email, "password": PASSWORD}
                async with browser.post(f"{origin}/oauth/login", data=fields, allow_redirects=False) as answer:
                    location = answer.headers["Location"]
            else:
                location = page.headers["Location"]
        form = {
            "grant_type": "authorization_code",
            "client_id": self.client_id,
            "code": parse_qs(urlsplit(location).query)["code"][0],
            "redirect_uri": self.callback,
            "code_verifier": VERIFIER,
        }
        async with browser.post(f"{origin}/oauth/token", data=form) as answer:
            assert answer.status == 200, await answer.text()
            token: str = (await answer.json())["access_token"]
            return token


async def test_every_app_hears_of_a_logout_whenever_identity_is_killed(make_stack: "Callable[..., Stack]") -> None:
    apps = [App("bfc"), App("vyomo")]
    runners = [await app.serve() for app in apps]
    told = json.dumps([app.registration() for app in apps])
    stack = await asyncio.to_thread(make_stack, environment={"identity": {"APPS": told}})
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        email = f"s{uuid4().hex[:12]}@example.com"
        person = {"email": email, "password": PASSWORD, "full_name": "Chitra Iyer", "phone": "+919800000000"}
        assert (await call(browser, "POST", f"{stack.origin}/api/auth/register", json=person)).status == 201
        tokens = [await app.sign_in(browser, stack.origin, email) for app in apps]
        sids = {jwt.decode(token, options={"verify_signature": False})["sid"] for token in tokens}
        assert len(sids) == 1, "one sign-in for both"
        credentials = {"email": email, "password": PASSWORD, "platform": "bfc"}
        login = await call(browser, "POST", f"{stack.origin}/api/auth/login", json=credentials)
        headers = {"Authorization": f"Bearer {login.body['access_token']}"}
        async with browser.post(f"{stack.origin}/api/auth/logout-all", headers=headers) as out:
            assert (out.status, (await out.json())["revoked"]) == (200, 2)
        # Answered, and killed before anybody can have been told for good: nobody listens yet.
        stack.kill("identity")
        for _ in range(2):
            async with asyncio.timeout(60):
                await asyncio.gather(*(app.asked.wait() for app in apps))
            stack.kill("identity")  # outstanding: asked, and not answered
            for app in apps:
                app.asked.clear()
        for app in apps:
            app.listens = True
        database = await asyncpg.connect(stack.cell.admin_url("identity"))
        async with asyncio.timeout(90):
            while await database.fetchval("SELECT count(*) FROM logout_note WHERE told_at IS NULL"):
                await asyncio.sleep(0.1)
        assert await database.fetchval("SELECT count(*) FROM logout_note") == len(apps)
        await database.close()
        for app in apps:
            assert len(app.heard) >= 3
            assert len({token["jti"] for token in app.heard}) == 1, "told again is told the same"
            assert {(token["aud"], token["sid"]) for token in app.heard} == {(app.client_id, *sids)}
        assert apps[0].heard[0]["jti"] != apps[1].heard[0]["jti"]
        counts = [len(app.heard) for app in apps]
        stack.kill("identity")
        await asyncio.to_thread(stack.wait_ready, ["identity"])
        await asyncio.sleep(2.5)  # more than a round of the sender
        assert [len(app.heard) for app in apps] == counts, "who has heard is told no more"
    for runner in runners:
        await runner.cleanup()
