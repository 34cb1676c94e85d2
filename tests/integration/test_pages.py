"""The pages, in a real browser: Chromium without a window."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlencode, urlsplit
from uuid import uuid4

import pytest
import requests
from customers import PASSWORD
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

if TYPE_CHECKING:
    from stack import Stack

pytestmark = pytest.mark.integration

CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"  # RFC 7636, appendix B


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    from packages import find, require

    require(["chromium", "chromedriver"], print)
    options = webdriver.ChromeOptions()
    options.binary_location = str(find("chromium"))
    profile = tmp_path_factory.mktemp("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=str(find("chromedriver")))
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.set_window_size(1000, 800)
        yield driver


def complaints(browser: webdriver.Chrome) -> list[str]:
    """What the browser refused or could not load; it asks for a favicon by itself."""
    entries = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries if "favicon" not in entry["message"]]


def test_signing_in_by_keyboard_and_being_told_what_is_wrong(
    sangam: "Stack", browser: webdriver.Chrome, tmp_path: Path
) -> None:
    email = f"browser-{uuid4().hex[:12]}@example.com"
    person = {"email": email, "password": PASSWORD, "full_name": "Ila Sen", "phone": "+919800000000"}
    assert requests.post(f"{sangam.origin}/api/auth/register", json=person, timeout=10).status_code == 201
    callback = f"{sangam.url('simulator-bfc')}/callback"
    asked = {"response_type": "code", "client_id": "bfc-app", "redirect_uri": callback, "scope": "openid"}
    asked |= {"state": "s1", "code_challenge": CHALLENGE, "code_challenge_method": "S256"}
    browser.get(f"{sangam.origin}/oauth/authorize?{urlencode(asked)}")

    # The cursor is in the first field; each field has its label, and Enter is enough.
    assert browser.switch_to.active_element.get_attribute("id") == "email"
    for field in browser.find_elements(By.CSS_SELECTOR, "input:not([type=hidden])"):
        assert field.accessible_name, field.get_attribute("id")
    browser.switch_to.active_element.send_keys(email, Keys.TAB)
    browser.switch_to.active_element.send_keys("not the password", Keys.ENTER)
    alert = WebDriverWait(browser, 10).until(lambda driver: driver.find_element(By.CSS_SELECTOR, "[role=alert]"))
    assert alert.is_displayed()
    password = browser.find_element(By.ID, "password")
    assert password.get_attribute("aria-describedby") == alert.get_attribute("id")
    assert browser.find_element(By.ID, "email").get_attribute("value") == email
    # The style is there although the policy allows no other.
    assert browser.find_element(By.TAG_NAME, "button").value_of_css_property("color") == "rgba(255, 255, 255, 1)"
    assert not complaints(browser)
    browser.save_screenshot(str(tmp_path / "login.png"))

    password.send_keys(PASSWORD, Keys.ENTER)
    WebDriverWait(browser, 10).until(lambda driver: driver.current_url.startswith(callback))
    query = parse_qs(urlsplit(browser.current_url).query)
    assert query["state"] == ["s1"]
    assert query["code"]


@pytest.mark.parametrize(("path", "entry"), [("/docs", "createTransfer"), ("/docs/events", "")])
def test_the_documents_open(sangam: "Stack", browser: webdriver.Chrome, path: str, entry: str) -> None:
    complaints(browser)  # of the page before
    browser.get(sangam.origin + path)
    details = browser.find_element(By.ID, entry) if entry else browser.find_elements(By.TAG_NAME, "details")[0]
    table = details.find_element(By.TAG_NAME, "table")
    assert not table.is_displayed()
    details.find_element(By.TAG_NAME, "summary").click()
    deadline = time.monotonic() + 5
    while not table.is_displayed():
        assert time.monotonic() < deadline
    assert not complaints(browser)
