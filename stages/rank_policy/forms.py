"""Other forms of an answer than the free compact line: JSON, a list of candidates alone, certificates of a given list.

All of them are over the ids of the window as printed. The grammars use what `certificates.grammar` uses of GBNF.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from pipeline import certificates
from pipeline.certificates import BETWEEN, END, Entry, Limits
from pipeline.errors import CertificateError
from pipeline.skeletons import Skeleton
from pipeline.windows import Window
from stages.rank_policy.questions import Question

CANDIDATE = "candidate"
_ID = re.compile(r"[A-Za-z0-9]+")


# ---- candidates first, certificates afterwards ----------------------------------------------------------------------


def list_grammar(window: Window, k: int) -> str:
    """A list of at most k candidates that cite nothing; only the empty one where nothing can be cited."""
    if not (window.candidates and window.handles and k >= 1):
        return f'root ::= "{END}"\n'
    more = ""
    for _ in range(k - 1):
        more = f' ("{BETWEEN}" candidate{more})?'
    ids = " | ".join(f'"{local_id}"' for local_id in sorted(c.local_id for c in window.candidates))
    return f'root ::= "{END}" | candidate{more} " {END}"\ncandidate ::= {ids}\n'


def evidence_grammar(window: Window, skeleton: Skeleton, limits: Limits, listed: Sequence[str]) -> str:
    """Certificates for all candidates of a list, in its order.

    Args:
        listed: local ids as printed, at least one; the window has handles.
    """
    entries = f' "{BETWEEN}" '.join(f'"{local_id}" slots' for local_id in listed)
    whole = certificates.grammar(window, skeleton, len(listed), limits).splitlines(keepends=True)
    kept = [rule for rule in whole if not rule.startswith(("root ", "entry ", "candidate "))]
    return f'root ::= {entries} " {END}"\n{"".join(kept)}'


# ---- JSON -----------------------------------------------------------------------------------------------------------


def json_schema(window: Window, skeleton: Skeleton, k: int, limits: Limits) -> dict[str, Any]:
    """What `certificates.grammar` allows, as JSON: `[{"candidate": "C07", "s1": ["E12", "E02"], "s3": ["E15"]}]`."""
    if not (window.candidates and window.handles and k >= 1):
        return {"type": "array", "maxItems": 0}
    ids = sorted(candidate.local_id for candidate in window.candidates)
    handles = sorted(handle.handle_id for handle in window.handles)
    cited = {"$ref": "#/$defs/cited"}
    slots = [slot.slot_id for slot in skeleton.slots]
    # One form per first slot, because a schema cannot say "at least one of these" in an order.
    forms = [
        {
            "type": "object", "properties": {CANDIDATE: {"enum": ids}, **dict.fromkeys(slots[j:], cited)},
            "required": [CANDIDATE, slots[j]], "additionalProperties": False,
        }
        for j in range(len(slots))
    ]  # fmt: skip
    return {
        "type": "array", "maxItems": k, "items": {"anyOf": forms},
        "$defs": {
            "cited": {"type": "array", "minItems": 1, "maxItems": limits.max_handles, "items": {"enum": handles}},
        },
    }  # fmt: skip


def parse_json(question: Question, text: str) -> list[Entry]:
    """Read the JSON form strictly: it is written as the compact line, which the compact parser judges.

    Raises:
        CertificateError: on anything else.
    """
    window = question.prompt.window
    line = _line(_loaded(text))
    return certificates.parse(line, window, question.skeleton, window.k, question.limits)


def to_json(line: str) -> str:
    """A well-formed compact line in JSON form."""
    entries: list[dict[str, Any]] = []
    for block in line.removesuffix(END).strip().split(BETWEEN) if line != END else []:
        local_id, *words = block.split(" ")
        slots = (word.partition("=") for word in words)
        entries.append({CANDIDATE: local_id, **{slot: cited.split(",") for slot, _, cited in slots}})
    return json.dumps(entries, separators=(",", ":"))


def _loaded(text: str) -> Any:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise CertificateError("duplicate_key", f"{keys[0][:40]!r} and others: a key stands twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise CertificateError("json", f"not JSON: {type(error).__name__}") from None


def _line(value: Any) -> str:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CertificateError("field_type", "not an array of objects")
    blocks = []
    for item in value:
        if CANDIDATE not in item:
            raise CertificateError("missing_key", "an entry without a candidate")
        words = [_id(item[CANDIDATE])]
        for slot_id, cited in item.items():
            if slot_id != CANDIDATE:
                if not isinstance(cited, list):
                    raise CertificateError("field_type", f"what {slot_id[:40]!r} cites is not an array")
                words.append(f"{_id(slot_id)}={','.join(map(_id, cited))}")
        blocks.append(" ".join(words))
    return f"{BETWEEN.join(blocks)} {END}" if blocks else END


def _id(value: Any) -> str:
    if not isinstance(value, str):
        raise CertificateError("field_type", f"{str(value)[:40]!r} is not a string")
    if not _ID.fullmatch(value):
        raise CertificateError("syntax", f"{value[:40]!r} is no id")
    return value
