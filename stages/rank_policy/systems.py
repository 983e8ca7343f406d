"""The systems: how a policy is asked, and which of its answers counts. Plain functions from a question to a talk.

| system | policy | answers | what counts |
|---|---|---|---|
| zero_shot | base | one, greedy, free | it |
| sft | supervised | one, greedy, free | it |
| sft_grammar | supervised | one, greedy, under the grammar of certificates | it |
| sft_json | supervised | one, greedy, under a JSON schema of the same content | it |
| retry | supervised | greedy, free; asked again with the reject code, at most `retries` times | the first accepted |
| best_of_rm | supervised | N samples under the grammar | the highest ranking utility by the reward model |
| best_of_reward | supervised | the same samples | the highest gated reward |
| crew | supervised | the same samples | the highest mean probability of ids and handles |
| posthoc | supervised | a list of candidates, then certificates for it, both greedy under a grammar | the latter |

An answer that does not parse, or lists a candidate twice, is an empty list. Behind what was emitted the order goes on
by the reward model. Where nothing can be cited, or the prompt does not fit, nothing is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline import certificates
from pipeline.certificates import REJECT_CODES
from pipeline.params import PolicySystem
from pipeline.rankings import OVER_BUDGET
from stages.rank_policy import forms, selection
from stages.rank_policy.questions import NoRoomError, Question, Reading, Talk
from stages.rank_policy.selection import Score

FEEDBACK = "Rejected: {code}, {meaning}. Write the whole line again."
"""What `retry` puts behind a rejected answer, on a line of its own; the last line of the prompt follows once more."""


def free(question: Question) -> Talk:
    """Whatever the policy writes."""
    [answer] = yield question.request("free", question.longest)
    return question.answered([question.read(answer)])


def constrained(question: Question) -> Talk:
    """Held to the grammar."""
    [answer] = yield question.request("grammar", question.longest, grammar=grammar(question))
    return question.answered([question.read(answer)])


def grammar(question: Question) -> str:
    """Of all certificates of the window as printed."""
    window = question.prompt.window
    return certificates.grammar(window, question.skeleton, window.k, question.limits)


def json_form(question: Question) -> Talk:
    """Held to a JSON schema."""
    window = question.prompt.window
    schema = forms.json_schema(window, question.skeleton, window.k, question.limits)
    [answer] = yield question.request("json", forms.to_json(question.longest), schema=schema)
    return question.answered([question.read(answer, forms.parse_json)])


def retry(question: Question) -> Talk:
    """Free, and asked again while form or validity are wrong; the verifier is not asked.

    Only the last answer stands behind the prompt. Where none is accepted, or there is no room to ask again, the last
    one counts as if it had been the only one.
    """
    readings: list[Reading] = []
    prompt = question.prompt.text
    for attempt in range(question.retries + 1):
        try:
            request = question.request(f"retry {attempt}", question.longest, prompt=prompt)
        except NoRoomError:
            if not readings:
                raise
            break
        [answer] = yield request
        readings.append(question.read(answer, attempt=attempt))
        code = rejected(question, readings[-1])
        if code is None:
            break
        prompt = fed_back(question, answer.text, code)
    earlier = [replace(reading, code=rejected(question, reading)) for reading in readings[:-1]]
    return question.answered([*earlier, readings[-1]])


def rejected(question: Question, reading: Reading) -> str | None:
    """The first rule of form or validity that an answer breaks."""
    if reading.code is not None:
        return reading.code
    codes = (certificates.check(e, question.window, question.skeleton, question.limits) for e in reading.entries)
    return next((code for code in codes if code is not None), None)


def fed_back(question: Question, text: str, code: str) -> str:
    """The prompt, a rejected answer made harmless, what is wrong with it, and the last line of the prompt."""
    own = question.prompt.text
    shown = question.prompter.untrusted(text)
    feedback = FEEDBACK.format(code=code, meaning=REJECT_CODES[code])
    return f"{own}{shown}\n{feedback}\n{own.splitlines(keepends=True)[-1]}"


def best_of(score: Score) -> Callable[[Question], Talk]:
    """The best of several samples."""

    def talk(question: Question) -> Talk:
        answers = yield question.request(
            "samples", question.longest, samples=question.samples, grammar=grammar(question)
        )
        readings = [question.read(answer, sample=i) for i, answer in enumerate(answers)]
        return question.answered(readings, selection.choose(question, readings, score))

    return talk


def posthoc(question: Question) -> Talk:
    """Decide first, look for evidence afterwards: post-hoc rationalisation. The order is not reconsidered."""
    window = question.prompt.window
    listing = forms.list_grammar(window, window.k)
    [answer] = yield question.request("list", question.longest, grammar=listing)
    first = question.read(answer)
    if not first.entries:
        return question.answered([first])
    names = {c.candidate_id: c.local_id for c in window.candidates}
    listed = [names[entry.candidate_id] for entry in first.entries]
    evidence = forms.evidence_grammar(window, question.skeleton, question.limits, listed)
    [answer] = yield question.request("evidence", question.longest, grammar=evidence)
    return question.answered([first, question.read(answer, attempt=1)])


@dataclass(frozen=True, slots=True)
class System:
    """How a system works.

    Args:
        talk: asks and answers.
        base: whether the base policy is asked; else the supervised one.
        sampled: whether it draws samples; else greedy.
    """

    talk: Callable[[Question], Talk]
    base: bool = False
    sampled: bool = False


SYSTEMS: dict[PolicySystem, System] = {
    "zero_shot": System(free, base=True),
    "sft": System(free),
    "sft_grammar": System(constrained),
    "sft_json": System(json_form),
    "retry": System(retry),
    "best_of_rm": System(best_of(selection.by_rank), sampled=True),
    "best_of_reward": System(best_of(selection.by_reward), sampled=True),
    "crew": System(best_of(selection.by_confidence), sampled=True),
    "posthoc": System(posthoc),
}


def talk(system: System, question: Question) -> Talk:
    """A system's talk about a question, or none where nothing can be asked."""
    if not question.answerable:
        return question.unasked("no_trigger_handle")
    try:
        return (yield from system.talk(question))
    except NoRoomError:
        return question.unasked(OVER_BUDGET)
