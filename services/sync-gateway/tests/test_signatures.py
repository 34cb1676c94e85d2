"""Feed signatures: what `standardwebhooks` signs is taken, everything else is refused with one exception."""

import base64
import secrets
import time
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks import Webhook
from sync_gateway.signatures import FeedSignatures, InvalidSecret, InvalidSignature


def secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


BFC, VYOMO = secret(), secret()
SIGNATURES = FeedSignatures({"bfc": BFC, "vyomo": VYOMO})
BODY = '{"items": [{"id": "ü"}]}'


def signed(at: datetime | None = None, key: str = BFC, body: str = BODY) -> dict[str, str]:
    at = at or datetime.now(UTC)
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(key).sign("msg_1", at, body),
    }


def test_a_signed_batch_is_taken() -> None:
    SIGNATURES.verify("bfc", signed(), BODY.encode())


def test_one_right_signature_among_several_is_enough() -> None:
    headers = signed()
    headers["webhook-signature"] = f"v1,{base64.b64encode(b'x' * 32).decode()} {headers['webhook-signature']}"
    SIGNATURES.verify("bfc", headers, BODY.encode())


def _without(name: str) -> dict[str, str]:
    return {**signed(), name: ""}


RIGHT = signed()["webhook-signature"]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, BODY.encode()),
        (_without("webhook-id"), BODY.encode()),
        (_without("webhook-timestamp"), BODY.encode()),
        (_without("webhook-signature"), BODY.encode()),
        (signed(), BODY.encode() + b" "),
        (signed(), b""),
        (signed(), b"\xff\xfe"),
        (signed(key=VYOMO), BODY.encode()),
        (signed(datetime.now(UTC) - timedelta(minutes=6)), BODY.encode()),
        # A day, for the test may run long after it was collected.
        (signed(datetime.now(UTC) + timedelta(days=1)), BODY.encode()),
        *(
            ({**signed(), "webhook-timestamp": value}, BODY.encode())
            for value in ("NaN", "inf", "-inf", "1e308", "soon", "1e999", "-1", str(10**40), "१७००००००००")
        ),
        *(
            ({**signed(), "webhook-signature": value}, BODY.encode())
            for value in (
                "v1",
                "v1,",
                "v1,!!!",
                "v1,abc",
                "v1,é",
                ",",
                " ",
                "v2," + RIGHT[3:],
                RIGHT + ",x",
                "v1,a,b",
                "v1a," + RIGHT[3:],
            )
        ),
        ({**signed(), "webhook-id": "msg_2"}, BODY.encode()),
        ({**signed(), "webhook-id": "\udcff"}, BODY.encode()),
    ],
)
def test_anything_else_is_refused(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(InvalidSignature):
        SIGNATURES.verify("bfc", headers, body)


def test_a_platform_cannot_sign_for_the_other() -> None:
    SIGNATURES.verify("vyomo", signed(key=VYOMO), BODY.encode())
    with pytest.raises(InvalidSignature):
        SIGNATURES.verify("vyomo", signed(key=BFC), BODY.encode())


def test_a_signature_holds_for_five_minutes_only() -> None:
    for age_s, good in ((295, True), (305, False)):
        headers = signed(datetime.fromtimestamp(time.time() - age_s, UTC))
        if good:
            SIGNATURES.verify("bfc", headers, BODY.encode())
        else:
            with pytest.raises(InvalidSignature):
                SIGNATURES.verify("bfc", headers, BODY.encode())


@pytest.mark.parametrize(
    "bad",
    ["", "whsec_", "whsec_c2hvcnQ=", "whsec_not base64 at all!!!!!!!!!!!!!!!!!", pytest.param(BFC[6:], id="no prefix")],
)
def test_a_weak_or_malformed_secret_stops_the_service(bad: str) -> None:
    with pytest.raises(InvalidSecret) as refused:
        FeedSignatures({"bfc": bad})
    key = bad.removeprefix("whsec_")
    assert not key or key not in str(refused.value)
