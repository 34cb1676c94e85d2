"""What the index knows of a document: its terms. Pure but for the library's own structs.

Every term of a text begins with its customer's id. So the terms that a query's beginning, typing errors and sounds are
looked for among are the caller's own, and neither what is found nor how long it takes depends on other customers.
"""

from uuid import UUID

import msgspec
import tantivy

from search.documents import Document
from search.folding import has_digit, words
from search.results import Kind, kind_of, rank_of
from search.scoring import AMOUNT
from search.sounds import sound

SHAPE = 2
"""Of the terms below. With another one an index is built anew: raise it with every change to what a document's terms
are, be it here, in `folding.py` or in `sounds.py`."""

SEPARATOR = "\x1f"
"""Between the parts of a term. Folding leaves no control characters in a word."""
_TITLE_END = "\x1e"

_TERMS_CHARACTERS_MAX = 256

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Document)


def build_schema() -> tantivy.Schema:
    """The schema of an index; always the same."""
    builder = tantivy.SchemaBuilder()
    terms = ("key", "user", "name", "title", "name_word", "word", "letters", "sound")
    for name in (*terms, "type", "platform", "category", "state"):
        builder.add_text_field(name, tokenizer_name="raw", index_option="basic")
    # All that facets count in one value: one thing to count instead of four.
    builder.add_text_field("kind", tokenizer_name="raw", index_option="basic", fast=True)
    builder.add_integer_field("paise", indexed=True, fast=True)
    builder.add_integer_field("date_us", indexed=True, fast=True)
    builder.add_unsigned_field("rank", indexed=True, fast=True)
    builder.add_bytes_field("body", stored=True)
    return builder.build()


def key_of(user_id: UUID, type_: str, id_: str) -> str:
    """What a document is replaced and deleted by."""
    return f"{user_id.hex}{SEPARATOR}{type_}{SEPARATOR}{id_}"


def own(user_id: UUID, text: str) -> str:
    """A customer's own term."""
    return f"{user_id.hex}{SEPARATOR}{text}"


def indexed(user_id: UUID, document: Document) -> tantivy.Document:
    """The document as the index takes it."""
    entry = tantivy.Document()
    entry.add_text("key", key_of(user_id, document.type, document.id))
    entry.add_text("user", user_id.hex)
    entry.add_text("type", document.type)
    if document.platform:
        entry.add_text("platform", document.platform)
    entry.add_text("category", document.category)
    if document.state:
        entry.add_text("state", document.state)
    entry.add_text("kind", SEPARATOR.join(kind_of(document)))
    if document.paise is not None:
        entry.add_integer("paise", document.paise)
    entry.add_integer("date_us", int(document.date.timestamp() * 1_000_000))
    entry.add_unsigned("rank", rank_of(document))
    entry.add_bytes("body", _encode(document))
    names, name_words, every = set[str](), set[str](), set[str]()
    for field in document.fields:
        if field.name == AMOUNT:
            continue
        own_words = words(field.value)
        every.update(own_words)
        if field.is_name and own_words:
            names.add(" ".join(own_words))
            name_words.update(own_words)
    letters = {word for word in every if not has_digit(word)}
    start = own(user_id, "")
    for name, terms in (
        ("name", names),
        ("title", title_terms(document.title)),
        ("name_word", name_words),
        ("word", every),
        ("letters", letters),
        ("sound", {heard for word in letters if (heard := sound(word))}),
    ):
        for term in terms:
            entry.add_text(name, start + term[:_TERMS_CHARACTERS_MAX])
    return entry


def document_in(entry: tantivy.Document) -> Document:
    """The document that was indexed."""
    return _decoder.decode(bytes(entry.get_first("body")))  # type: ignore[arg-type]


def kind_in(term: str) -> Kind:
    """The kind that a term of the field `kind` stands for. Only a category may hold anything."""
    type_, platform, rest = term.split(SEPARATOR, 2)
    category, _, state = rest.rpartition(SEPARATOR)
    return Kind(type_, platform, category, state)


def title_in(term: str) -> str:
    """The whole title that a term of the field `title` leads to, as `name_key` has it."""
    return term.rpartition(_TITLE_END)[2]


def title_terms(title: str) -> set[str]:
    """The title from each of its words on, for suggestions; each leads to the whole."""
    every = words(title)
    return {f"{' '.join(every[start:])}{_TITLE_END}{' '.join(every)}" for start in range(min(len(every), 8))}
