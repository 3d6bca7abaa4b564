"""Clauses: the tense and modality of each language around a subject and an action."""

from collections.abc import Callable

from tools.phrasebook.grammar import Action, Draw, Pair, Phrase
from tools.phrasebook.lexicon import Verb

_BE = {"1": "am", "3": "is", "p": "are"}
_WAS = {"1": "was", "3": "was", "p": "were"}


def be(agr: str) -> str:
    """The present of *be*."""
    return _BE[agr]


def was(agr: str) -> str:
    """The past of *be*."""
    return _WAS[agr]


def have(agr: str) -> str:
    """The present of *have*."""
    return "has" if agr == "3" else "have"


def do(agr: str) -> str:
    """The present of *do*."""
    return "does" if agr == "3" else "do"


def _s(verb: str, agr: str) -> str:
    return f"{verb}s" if agr == "3" else verb


# name: (English verb group, Vietnamese before the verb, English at the end, Vietnamese at the end)
_Tense = tuple[Callable[[Verb, str], str], str, str, str]
TENSES: dict[str, _Tense] = {
    "present": (lambda v, a: v.third if a == "3" else v.en, "", "", ""),
    "progressive": (lambda v, a: f"{_BE[a]} {v.ing}", "đang", "", ""),
    "still": (lambda v, a: f"{_BE[a]} still {v.ing}", "vẫn đang", "", ""),
    "past": (lambda v, a: v.past, "đã", "", ""),
    "future": (lambda v, a: f"will {v.en}", "sẽ", "", ""),
    "just": (lambda v, a: f"{have(a)} just {v.participle}", "vừa mới", "", ""),
    "about": (lambda v, a: f"{_BE[a]} about to {v.en}", "sắp", "", ""),
    "used": (lambda v, a: f"used to {v.en}", "từng", "", ""),
    "already": (lambda v, a: f"{have(a)} already {v.participle}", "đã", "", " rồi"),
    "not yet": (lambda v, a: f"{have(a)} not {v.participle}", "chưa", " yet", ""),
    "never": (lambda v, a: f"{have(a)} never {v.participle}", "chưa bao giờ", "", ""),
    "not present": (lambda v, a: f"{do(a)} not {v.en}", "không", "", ""),
    "not past": (lambda v, a: f"did not {v.en}", "đã không", "", ""),
    "not future": (lambda v, a: f"will not {v.en}", "sẽ không", "", ""),
    "can": (lambda v, a: f"can {v.en}", "có thể", "", ""),
    "must": (lambda v, a: f"must {v.en}", "phải", "", ""),
    "should": (lambda v, a: f"should {v.en}", "nên", "", ""),
    "want": (lambda v, a: f"{_s('want', a)} to {v.en}", "muốn", "", ""),
    "need": (lambda v, a: f"{_s('need', a)} to {v.en}", "cần", "", ""),
    "cannot": (lambda v, a: f"cannot {v.en}", "không thể", "", ""),
    "must not": (lambda v, a: f"must not {v.en}", "không được", "", ""),
    "should not": (lambda v, a: f"should not {v.en}", "không nên", "", ""),
    "not want": (lambda v, a: f"{do(a)} not want to {v.en}", "không muốn", "", ""),
    "not need": (lambda v, a: f"{do(a)} not need to {v.en}", "không cần", "", ""),
    "like": (lambda v, a: f"{_s('like', a)} to {v.en}", "thích", "", ""),
    "try": (lambda v, a: f"{_BE[a]} trying to {v.en}", "đang cố gắng", "", ""),
    "start": (lambda v, a: f"{have(a)} started to {v.en}", "đã bắt đầu", "", ""),
    "plan": (lambda v, a: f"{_s('plan', a)} to {v.en}", "định", "", ""),
    "forgot": (lambda v, a: f"forgot to {v.en}", "đã quên", "", ""),
    "decided": (lambda v, a: f"decided to {v.en}", "đã quyết định", "", ""),
    "always": (lambda v, a: f"always {v.third if a == '3' else v.en}", "luôn luôn", "", ""),
    "usually": (lambda v, a: f"usually {v.third if a == '3' else v.en}", "thường", "", ""),
    "often": (lambda v, a: f"often {v.third if a == '3' else v.en}", "hay", "", ""),
    "sometimes": (lambda v, a: f"sometimes {v.third if a == '3' else v.en}", "đôi khi", "", ""),
    "rarely": (lambda v, a: f"rarely {v.third if a == '3' else v.en}", "hiếm khi", "", ""),
    "hardly": (lambda v, a: f"never {v.third if a == '3' else v.en}", "không bao giờ", "", ""),
}


def clause(d: Draw, subject: Phrase, action: Action, tense: str) -> Pair:
    """A whole clause without punctuation.

    A verb that doesn't go on, or that nobody intends, takes the recent past where ``tense``
    would say otherwise.
    """
    flags = action.verb.flags
    if ("e" in flags and tense in _ONGOING) or ("u" in flags and tense in _INTENDED):
        tense = "just"
    if tense in _RESULTS and action.verb.en in ENDLESS:
        tense = "about"
    group, before, end, vi_end = TENSES[tense]
    d.note("subject", subject.key, tense)
    d.note("tense", action.verb.en, tense)
    en = f"{subject.en} {group(action.verb, subject.agr)}"
    if action.object:
        en = f"{en} {action.object}"
    vi = f"{subject.vi} {before} {action.vi}" if before else f"{subject.vi} {action.vi}"
    return en + end, vi + vi_end


_ONGOING = frozenset(("progressive", "still", "try", "start"))
_INTENDED = frozenset(
    ["can", "must", "should", "want", "need", "like", "try", "start", "plan", "decided", "forgot"]
)
_RESULTS = frozenset(("already", "not yet", "just"))
ENDLESS = frozenset(
    [
        "run",
        "walk",
        "cry",
        "laugh",
        "work",
        "smoke",
        "swim",
        "wait",
        "talk",
        "dance",
        "sing",
        "rest",
        "sleep",
        "study",
    ]
)
