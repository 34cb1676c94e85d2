import pytest
from identity.contact import email_address, full_name, phone_number


@pytest.mark.parametrize(
    ("text", "address", "unique"),
    [
        ("asha@example.in", "asha@example.in", "asha@example.in"),
        ("Asha.Rao+bank@Example.IN", "Asha.Rao+bank@example.in", "asha.rao+bank@example.in"),
        ("आशा@example.in", "आशा@example.in", "आशा@example.in"),
        ("asha@bücher.example", "asha@xn--bcher-kva.example", "asha@xn--bcher-kva.example"),
        ("e\u0301mile@example.in", "\u00e9mile@example.in", "\u00e9mile@example.in"),
        (f"{'a' * 64}@example.in", f"{'a' * 64}@example.in", f"{'a' * 64}@example.in"),
    ],
)
def test_email(text: str, address: str, unique: str) -> None:
    assert email_address(text) == (address, unique)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "asha",
        "@example.in",
        "asha@",
        "asha@localhost",
        "asha@@example.in",
        "asha@exa mple.in",
        "as ha@example.in",
        ".asha@example.in",
        "asha.@example.in",
        "as..ha@example.in",
        "asha@-example.in",
        "asha@example..in",
        "asha@example.in.",
        "asha@example.in\r\nBcc: x@example.in",
        "asha\u0000@example.in",
        '"asha rao"@example.in',
        "asha\u200b@example.in",
        "asha\u00a0rao@example.in",
        f"{'a' * 65}@example.in",
        f"a@{'a' * 64}.in",
        f"a@{'a.' * 130}in",
    ],
)
def test_no_email(text: str) -> None:
    with pytest.raises(ValueError, match="is not an e-mail address"):
        email_address(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("+919812345678", "+919812345678"),
        ("+91 98123-45678", "+919812345678"),
        ("9812345678", "+919812345678"),
        ("+1 (415) 555-2671", "+14155552671"),
    ],
)
def test_phone(text: str, number: str) -> None:
    assert phone_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "+", "12345", "+0123456789", "+9198123456789012", "+91981234567x", "+٩١٩٨١٢٣٤٥٦٧٨"]
)
def test_no_phone(text: str) -> None:
    with pytest.raises(ValueError, match="is not a phone number"):
        phone_number(text)


@pytest.mark.parametrize("name", ["Asha Rao", "अशोक क्\u200dष", "O'Brien", "李", "x" * 200])
def test_name(name: str) -> None:
    assert full_name(f"  {name} ") == name


@pytest.mark.parametrize("name", ["", "   ", "x" * 201, "Asha\nRao", "Asha\u0000", "\u202eoaR ahsA", "a\u2028b"])
def test_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="must"):
        full_name(name)
