"""People under pseudonyms, and their access tokens.

A token is 256 random bits; only its SHA-256 is stored, so that a copy of the file grants no access. A fast hash is enough, as
256 bits cannot be guessed. An invite token is valid until it is revoked; it is exchanged for a session token, which a browser
keeps for a month. Session tokens have a prefix, and their hashes a byte before them, so that expired ones can be found.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
import unicodedata

from konomi.labelling.database import Store
from konomi.labelling.records import NAME_LIMIT, Person, Refused, without_surrogates

SESSION_SECONDS = 30 * 24 * 3600
_SESSION = "s."
_PERSON = """SELECT id, name, admin, EXISTS (SELECT 1 FROM tokens WHERE person = people.id), guidelines_seen, shortcuts
    FROM people"""


def add_person(store: Store, name: str, *, admin: bool = False) -> tuple[Person, str]:
    """Add a person; return them and their invite token, which cannot be read again.

    Raises:
        Refused: the name is blank, too long, or taken.
    """
    name = checked_name(name)
    with store.write() as db:
        if db.execute("SELECT 1 FROM people WHERE name = ? OR id = ?", (name, name)).fetchone():
            raise Refused("name_taken", f"the name {name!r} is taken; choose another")
        person = f"p-{secrets.token_hex(5)}"
        db.execute("INSERT INTO people (id, name, admin, created) VALUES (?, ?, ?, ?)", (person, name, admin, time.time()))
        token = new_token(store, person)
        return find_person(store, person), token


def checked_name(name: str) -> str:
    """A name with plain single spaces. Raises Refused: it is blank or too long.

    >>> checked_name(" 山田\u3000太郎 ")
    '山田 太郎'
    """
    name = _spaced(name)
    if not name or not name.isprintable():
        raise Refused("bad_name", f"name {name[:40]!r}: a name of visible characters is needed")
    if len(name) > NAME_LIMIT:
        raise Refused("too_long", f"the name has {len(name):,} characters; {NAME_LIMIT} are allowed")
    return name


def _spaced(name: str) -> str:
    spaced = "".join(" " if unicodedata.category(each) == "Zs" else each for each in without_surrogates(name))
    return re.sub(" +", " ", spaced).strip()


def find_person(store: Store, who: str) -> Person:
    """The person with this pseudonym or name. Raises Refused: there is none."""
    with store.read() as db:
        row = db.execute(f"{_PERSON} WHERE id = ? OR name = ?", (_spaced(who), _spaced(who))).fetchone()
    if row is None:
        raise Refused("unknown_person", f"there is no person {who[:80]!r}")
    return _person(row)


def all_people(store: Store) -> list[Person]:
    """Everybody, in the order in which they were added."""
    with store.read() as db:
        return [_person(row) for row in db.execute(f"{_PERSON} ORDER BY created, id")]


def bring(store: Store, other: Store) -> None:
    """Copy the people and invites of another store. Existing people are unchanged. Done once per store: a person
    who is removed or revoked here later stays so."""
    if store.meta("people_brought"):
        return
    columns = "id, name, admin, created, guidelines_seen, shortcuts"
    with other.read() as db:
        people = db.execute(f"SELECT {columns} FROM people").fetchall()
        tokens = db.execute("SELECT hash, person, created FROM tokens WHERE length(hash) = 32").fetchall()
    with store.write() as db:
        db.executemany(f"INSERT OR IGNORE INTO people ({columns}) VALUES (?, ?, ?, ?, ?, ?)", people)
        known = {row[0] for row in db.execute("SELECT id FROM people")}
        db.executemany("INSERT OR IGNORE INTO tokens VALUES (?, ?, ?)", [row for row in tokens if row[1] in known])
        store.set_meta("people_brought", "1")


def remember(store: Store, person: Person, *, guidelines_seen: str | None = None, shortcuts: bool | None = None) -> Person:
    """Update a person's settings (None: unchanged), and return the person."""
    with store.write() as db:
        db.execute(
            "UPDATE people SET guidelines_seen = coalesce(?, guidelines_seen), shortcuts = coalesce(?, shortcuts) WHERE id = ?",
            (guidelines_seen, shortcuts, person.id),
        )
        return find_person(store, person.id)


def forget(store: Store, who: str) -> int:
    """Delete a person (by pseudonym or name) with tokens and answers; return how many tasks they had answered.

    These tasks need answers again; conversations with a model are deleted too. Earlier exports still hold the answers.

    Raises:
        Refused: there is no such person.
        RunError: everything is deleted, but another process keeps the file open: traces may remain until the store is reopened.
    """
    with store.write() as db:
        person = (find_person(store, who).id,)
        answered = db.execute("SELECT count(number) FROM shown WHERE person = ?", person).fetchone()[0]
        of_person = "SELECT task FROM shown WHERE person = ? AND repeat = 0 AND kind <> 'skipped'"
        db.execute(f"UPDATE tasks SET covered = covered - 1 WHERE id IN ({of_person})", person)
        query = "SELECT task FROM shown JOIN tasks ON tasks.id = task WHERE person = ? AND tasks.kind = 'chat'"
        talks = db.execute(query, person).fetchall()
        db.execute("DELETE FROM people WHERE id = ?", person)  # and, by their foreign keys, all the rest
        for statement in ("candidates WHERE task = ?", "tasks WHERE id = ?"):
            db.executemany(f"DELETE FROM {statement}", talks)
        store.set_meta("forgotten", str(int(store.meta("forgotten") or 0) + 1))
        store.set_meta("compact", "1")
    store.compact()
    return int(answered)


def new_token(store: Store, person_id: str, *, session: bool = False) -> str:
    """A further token for a person: of an invite, or of a session. Expired sessions are removed.

    Raises:
        Refused: there is no such person.
    """
    token = (_SESSION if session else "") + secrets.token_urlsafe(32)
    with store.write() as db:
        db.execute("INSERT INTO tokens VALUES (?, ?, ?)", (_hash(token), find_person(store, person_id).id, time.time()))
        if session:
            db.execute("DELETE FROM tokens WHERE length(hash) = 33 AND created < ?", (time.time() - SESSION_SECONDS,))
    return token


def is_session(token: str) -> bool:
    """Whether a token has the form of a session's."""
    return token.startswith(_SESSION)


def person_of(store: Store, token: str) -> Person | None:
    """The owner of a token; None if there is none, or it was revoked or has expired."""
    given = _hash(token)
    with store.read() as db:
        row = db.execute("SELECT hash, person, created FROM tokens WHERE hash = ?", (given,)).fetchone()
        if row is None or not hmac.compare_digest(row[0], given):
            return None
        if is_session(token) and row[2] < time.time() - SESSION_SECONDS:
            return None
        return find_person(store, row[1])


def end_session(store: Store, token: str) -> None:
    """Revoke the token of a session; others are left alone."""
    if is_session(token):
        with store.write() as db:
            db.execute("DELETE FROM tokens WHERE hash = ?", (_hash(token),))


def revoke(store: Store, person_id: str) -> None:
    """Revoke all tokens of a person; their answers stay. Raises Refused: there is no such person."""
    with store.write() as db:
        db.execute("DELETE FROM tokens WHERE person = ?", (find_person(store, person_id).id,))


def _hash(token: str) -> bytes:
    digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
    return b"s" + digest if is_session(token) else digest


def _person(row: tuple[str, str, int, int, str | None, int]) -> Person:
    return Person(row[0], row[1], bool(row[2]), bool(row[3]), row[4], bool(row[5]))
