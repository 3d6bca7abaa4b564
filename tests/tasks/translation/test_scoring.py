"""Scores against sacreBLEU itself, hand-computed BLEU, and detokenization."""

import functools
import json
import logging
import math

import pytest
import sacrebleu

from normtrain.errors import UserError
from normtrain.tasks.translation import metrics
from normtrain.tasks.translation.detokenize import detokenize

score = functools.partial(metrics.score, target_lang="vi")

HYPOTHESES = [
    "Hôm nay trời đẹp , tôi đi học .",
    'Anh ấy nói : " Tôi không biết " .',
    "Cô ấy có 10 % cổ phần ( hơn trước ) .",
]
REFERENCES = [
    "Hôm nay trời rất đẹp , tôi đi học .",
    'Anh ta nói : " Tôi không biết gì " .',
    "Cô ấy có 10 % cổ phần ( ít hơn trước ) .",
]


def test_equals_sacrebleu_on_plain_text() -> None:
    got = score(HYPOTHESES, REFERENCES, tokenized=False)
    bleu = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], force=True)
    assert (got.bleu, got.brevity_penalty, list(got.precisions)) == (
        *(bleu.score, bleu.bp),
        bleu.precisions,
    )
    assert got.length_ratio == bleu.sys_len / bleu.ref_len
    assert got.chrf == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert (got.sentences, got.tokenized) == (3, None)


def test_bleu_by_hand() -> None:
    # 1- to 4-grams found: 5 of 6, 3 of 5, 2 of 4, 1 of 3; 6 words against 7.
    got = score(["a b c d x f"], ["a b c d e f g"], tokenized=False)
    brevity = math.exp(1 - 7 / 6)
    by_hand = brevity * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert got.bleu == pytest.approx(100 * by_hand)
    assert got.brevity_penalty == pytest.approx(brevity)
    assert got.length_ratio == pytest.approx(6 / 7)
    assert got.precisions == pytest.approx((500 / 6, 60, 50, 100 / 3))


def test_perfect_and_hopeless() -> None:
    assert score(REFERENCES, REFERENCES, tokenized=True).bleu == pytest.approx(100)
    assert score(["", "", ""], REFERENCES, tokenized=False).bleu == 0
    assert score(["một hai ba bốn"], [""], tokenized=False).bleu == 0


def test_signatures_name_what_was_done() -> None:
    got = score(HYPOTHESES, REFERENCES, tokenized=True)
    version = f"version:{sacrebleu.__version__}"
    assert got.bleu_signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|{version}"
    assert got.chrf_signature == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|{version}"
    assert "tok:13a" in got.tokenized.signature_13a
    assert "tok:none" in got.tokenized.signature_none
    assert json.loads(json.dumps(got.to_dict())) == got.to_dict()


def test_tokenized_text_is_scored_both_ways() -> None:
    hypotheses = ["I do n't know 1,5 %-points , x/y , sir .", *HYPOTHESES]
    references = ["I do n't know the 1,5 %-points , x/y , sir .", *REFERENCES]
    got = score(hypotheses, references, tokenized=True)
    joined = (
        [detokenize(x, "vi") for x in hypotheses],
        [[detokenize(x, "vi") for x in references]],
    )
    assert got.bleu == sacrebleu.corpus_bleu(*joined).score
    assert got.chrf == sacrebleu.corpus_chrf(*joined).score
    for tokenize, value in (("13a", got.tokenized.bleu_13a), ("none", got.tokenized.bleu_none)):
        expected = sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokenize, force=True)
        assert value == expected.score
    assert len({got.bleu, got.tokenized.bleu_13a, got.tokenized.bleu_none}) == 3


def test_no_warning_about_tokenized_periods(caplog: pytest.LogCaptureFixture) -> None:
    many = ["câu này kết thúc bằng dấu chấm ."] * 200
    with caplog.at_level(logging.WARNING):
        score(many, many, tokenized=True)
        score(many, many, tokenized=False)
    assert not caplog.records


def test_wrong_counts_are_an_error() -> None:
    with pytest.raises(UserError, match="2 translations for 3 references"):
        score(HYPOTHESES[:2], REFERENCES, tokenized=False)
    with pytest.raises(UserError, match="no sentences to score"):
        score([], [], tokenized=False)


@pytest.mark.parametrize(
    ("lang", "tokens", "written"),
    [
        ("vi", "", ""),
        ("vi", "Tôi đi học .", "Tôi đi học."),
        ("vi", "Hà Nội , Huế ; Đà Nẵng : đẹp !", "Hà Nội, Huế; Đà Nẵng: đẹp!"),
        ("vi", "Thế à ? ! Ừ ...", "Thế à?! Ừ..."),
        ("vi", 'Anh nói : " Đi thôi ! " rồi đi .', 'Anh nói: "Đi thôi!" rồi đi.'),
        ("vi", '" Một " và " hai " .', '"Một" và "hai".'),
        ("vi", 'growth is ," said Schmidt , " today ."', 'growth is," said Schmidt, "today."'),
        ("vi", "( CNN ) - Điều tra [ mới ]", "(CNN) - Điều tra [mới]"),
        ("vi", "-LRB- một -RRB- `` hai ''", '(một) "hai"'),
        ("vi", "“ một ” ‘ hai ’", "“một” ‘hai’"),
        ("vi", "I do n't know , ca N'T I ?", "I don't know, caN'T I?"),
        ("vi", "Jackson 's body , they 'll go , I 'd", "Jackson's body, they'll go, I'd"),
        ("vi", "I don 't ; we ’re", "I don't; we’re"),
        ("vi", "tell 'em Tim O 'Reilly 's", "tell 'em Tim O'Reilly's"),
        ("vi", "Wright Brothers ' first", "Wright Brothers' first"),
        ("vi", "in the ' 80s", "in the '80s"),
        ("vi", "phim ' Màn sương ' hay", "phim 'Màn sương' hay"),
        ("vi", "phim ' Màn sương '", "phim 'Màn sương'"),
        ("vi", "Standard & Poor '", "Standard & Poor'"),
        ("vi", "more than $ 1,000 , 16 % rise", "more than $1,000, 16% rise"),
        ("vi", "khoảng 69,95 $ .", "khoảng 69,95 $."),
        ("vi", "ngày 11 / 9 và / hoặc lúc 10 : 30", "ngày 11/9 và / hoặc lúc 10:30"),
        ("vi", 'so congested " .', 'so congested".'),
        ("vi", "self @-@ made", "self-made"),
        ("vi", "một -- hai – ba", "một -- hai – ba"),
        ("vi", "Viết liền, như thường (không đổi).", "Viết liền, như thường (không đổi)."),
        ("vi", 'Câu "thường" và it\'s "fine".', 'Câu "thường" và it\'s "fine".'),
        ("fr", "l' homme dit : « Qu' est -ce ? »", "l'homme dit : « Qu'est -ce ? »"),
        ("fr-CA", "à 10 : 30 , d’ accord !", "à 10:30, d’accord !"),
        ("it", "Un po' d' acqua ?", "Un po' d'acqua?"),
        ("de", "Er sagte : „ Komm ! “ ( leise )", "Er sagte: „Komm!“ (leise)"),
        ("de", "Ich hab ' s 'ne", "Ich hab 's 'ne"),
        ("pl", "“ Tak , ” -LRB- 5 @-@ 6 -RRB- .", "“Tak,” (5-6)."),
    ],
)
def test_detokenize(lang: str, tokens: str, written: str) -> None:
    assert detokenize(tokens, lang) == written
    assert detokenize(written, lang) == written
