"""What guards search: nothing of another customer, no digit taken for another, nothing lost with an index."""

from guard import Guard

_SOURCE = "services/search/src/search/"
_TESTS = "services/search/tests/test_"

GUARDS = (
    # Only the caller's own.
    Guard(
        "search: the files without the customer in the query",
        _SOURCE + "index_queries.py",
        'must = [tantivy.Query.term_query(self._schema, "user", user_id.hex)]',
        "must = [tantivy.Query.all_query()]",
        (_TESTS + "engine.py::test_nothing_of_another_customer_is_in_any_answer",),
    ),
    Guard(
        "search: what is new, of anybody",
        _SOURCE + "engine.py",
        "mine = view.fresh.get(user_id, {})\n        fresh =",
        "mine = {key: one for each in view.fresh.values() for key, one in each.items()}\n        fresh =",
        (_TESTS + "engine.py::test_nothing_of_another_customer_is_in_any_answer",),
    ),
    Guard(
        "search: PostgreSQL without the customer",
        _SOURCE + "fallback.py",
        "    user_id = $1\n    AND (",
        "    ($1::uuid IS NOT NULL)\n    AND (",
        (_TESTS + "search_route.py::test_nobody_finds_what_is_another_customers",),
    ),
    Guard(
        "search: recent queries of anybody",
        _SOURCE + "recent.py",
        '"SELECT query, searched_at FROM recent_search WHERE user_id = $1 ORDER',
        '"SELECT query, searched_at FROM recent_search WHERE $1::uuid IS NOT NULL ORDER',
        (_TESTS + "documents.py::test_the_last_ten_distinct_queries_are_remembered_and_forgotten",),
    ),
    Guard(
        "search: somebody else's cursor",
        _SOURCE + "api.py",
        "cursors.decode(cursor, Place, purpose=purpose, caller=caller.user_id)",
        "cursors.decode(cursor, Place, purpose=purpose)",
        (_TESTS + "search_route.py::test_pages_do_not_shift",),
    ),
    Guard(
        "search: a cursor of another query",
        _SOURCE + "api.py",
        'purpose = msgspec.json.encode(["search", query.text, filters]).decode()',
        'purpose = "search"',
        (_TESTS + "search_route.py::test_pages_do_not_shift",),
    ),
    Guard(
        "search: a cursor that nobody signed",
        "libs/chassis/src/chassis/cursors.py",
        "if not hmac.compare_digest(mac, self._mac(payload, purpose, caller)):",
        "if False:",
        (_TESTS + "search_route.py::test_pages_do_not_shift",),
    ),
    # What a match is.
    Guard(
        "search: a typing error in a query's number",
        _SOURCE + "scoring.py",
        "if has_digit(word) or len(word) < 4:",
        "if len(word) < 4:",
        (_TESTS + "scoring.py",),
    ),
    Guard(
        "search: a typing error in a document's number",
        _SOURCE + "scoring.py",
        "if word == other or not allowed or has_digit(other):",
        "if word == other or not allowed:",
        (_TESTS + "scoring.py",),
    ),
    Guard(
        "search: numbers among the words that can be misspelt",
        _SOURCE + "index_schema.py",
        "letters = {word for word in every if not has_digit(word)}",
        "letters = set(every)",
        (_TESTS + "engine.py::test_a_word_with_a_digit_is_not_a_misspelt_one_among_many_either",),
    ),
    Guard(
        "search: fuzzy above contains",
        _SOURCE + "scoring.py",
        "return (78, 72, 66, 60, 55, 50, 45)[self]",
        "return (78, 72, 66, 60, 61, 50, 45)[self]",
        (_TESTS + "scoring.py",),
    ),
    Guard(
        "search: a beginning above the exact name",
        _SOURCE + "scoring.py",
        "EXACT, BEGINS_WITH_WORDS, BEGINS = 100, 90, 80",
        "EXACT, BEGINS_WITH_WORDS, BEGINS = 100, 101, 80",
        (_TESTS + "scoring.py",),
    ),
    Guard(
        "search: closing what is closed",
        _SOURCE + "actions.py",
        '    if document.state == "open":\n',
        "    if True:\n",
        (_TESTS + "documents.py::test_a_fund_is_a_position_at_the_bank_and_only_an_open_position_can_be_closed",),
    ),
    # Nothing is lost with an index.
    Guard(
        "search: a position that is on the disk before what it stands for",
        _SOURCE + "engine.py",
        '        self._writer.delete_documents_by_term("key", _META)\n        self._writer.add_document(meta)\n',
        "        self._writer.rollback()\n"
        '        self._writer.delete_documents_by_term("key", _META)\n        self._writer.add_document(meta)\n',
        (_TESTS + "engine.py::test_documents_and_their_position_are_committed_at_once",),
    ),
    Guard(
        "search: shown without a limit",
        _SOURCE + "engine.py",
        "if self._must_commit or sum(map(len, fresh.values())) > FRESH_MAX:",
        "if self._must_commit:",
        (_TESTS + "engine.py::test_what_is_shown_is_found_and_comes_again_after_a_crash",),
    ),
    Guard(
        "search: erased, and only shown",
        _SOURCE + "engine.py",
        "        self._touched.add(user_id)\n        self._must_commit = True\n\n    def _note",
        "        self._touched.add(user_id)\n\n    def _note",
        (_TESTS + "engine.py::test_what_is_erased_is_gone_from_answers_and_words",),
    ),
    Guard(
        "search: a replaced document twice",
        _SOURCE + "index_queries.py",
        "        if newer:\n",
        "        if False:\n",
        (_TESTS + "engine.py::test_every_answer_is_what_scoring_each_document_by_hand_gives",),
    ),
    Guard(
        "search: files that are not what was written",
        _SOURCE + "index_files.py",
        'json.loads(data[len(body) : -_FOOTER.size])["crc"] != zlib.crc32(body)',
        "False",
        (_TESTS + "engine.py::test_damage_is_noticed_wherever_it_is",),
    ),
    Guard(
        "search: an index of another shape",
        _SOURCE + "engine.py",
        "if meta.shape != SHAPE:",
        "if False:",
        (_TESTS + "engine.py::test_an_index_of_another_shape_is_not_used",),
    ),
    Guard(
        "search: an index of another read model",
        _SOURCE + "replica.py",
        "if source.table != self._index.origin.table:",
        "if False:",
        (_TESTS + "replica.py::test_another_read_model_gets_another_index",),
    ),
    Guard(
        "search: a folder that is gone",
        _SOURCE + "replica.py",
        'raise IndexDamaged("its folder is gone")',
        "pass",
        (_TESTS + "replica.py::test_a_deleted_folder_comes_back_by_itself",),
    ),
    Guard(
        "search: an error of the disk ends the keeping",
        _SOURCE + "engine.py",
        "except (ValueError, OSError, KeyError, struct.error, msgspec.MsgspecError) as error:",
        "except (KeyError, struct.error, msgspec.MsgspecError) as error:",
        (_TESTS + "replica.py::test_a_full_disk_loses_nothing_and_mends_itself",),
    ),
    Guard(
        "search: two writers of one folder",
        _SOURCE + "replica.py",
        "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        (_TESTS + "replica.py::test_two_replicas_have_an_index_each",),
    ),
    Guard(
        "search: a read before the write it names",
        _SOURCE + "api.py",
        "return applied is None or await replica.contains(applied, _CONTAINED_WAIT_S)",
        "return True",
        (_TESTS + "replica.py::test_whoever_waits_for_a_write_finds_it_in_an_index_that_has_not_looked_yet",),
    ),
    Guard(
        "search: erased, and left in the files after a restart",
        _SOURCE + "engine.py",
        "self.holds_erased = meta.holds_erased",
        "self.holds_erased = False",
        (_TESTS + "replica.py::test_who_was_erased_leaves_the_files_too_also_after_a_restart",),
    ),
)
