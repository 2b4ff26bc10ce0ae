"""The five scores of the E2E challenge, each against several references: BLEU, NIST, METEOR, ROUGE-L and CIDEr.

They equal those of the challenge's own script (github.com/tuetschek/e2e-metrics) as LoRA's published code calls it,
`measure_scores.py -p`. Without -p that script runs Perl's mteval, whose NIST takes a missing reference for an empty one
where meanings have unequally many. With -p an output of fewer than four words counts a negative number of n-grams, and
an empty one a word, which raises BLEU and NIST; here it does not.

Two tokenisations are at work: BLEU and NIST cut words as mteval-13a does and then ignore case; the other three take the
lower-cased tokens of Stanford's PTB tokenizer without punctuation. Brackets stay among them, as in the script.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

from vbank.live import progress
from vbank.tasks.sources import DataError

METRICS = ("bleu", "nist", "meteor", "rouge_l", "cider")
NEED_JAVA = METRICS[2:]
Tokens = list[str]
Announce = Callable[[str], object]


def score(
    outputs: Sequence[str], references: Sequence[Sequence[str]], announce: Announce | None = print
) -> dict[str, float]:
    """Scores of one system's outputs; see `score_systems`."""
    return score_systems({"": outputs}, references, announce)[""]


def score_systems(
    systems: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]], announce: Announce | None = print
) -> dict[str, dict[str, float]]:
    """Scores of several systems on the same meanings, in the units of the papers' tables.

    Args:
        systems: name -> one output a meaning. An empty output is scored, not refused.
        references: the reference texts of each meaning, in the order of the outputs; their own order is of no account.
        announce: takes a line that says which metrics are left out, and why.

    Returns:
        name -> {"bleu", "meteor", "rouge_l": percent; "nist": bits; "cider": 0 to 10}. Without Java "bleu" and "nist"
        alone: METEOR is a Java program, and so is the tokenizer under ROUGE-L and CIDEr.

    Raises:
        DataError: no meaning, a meaning without a reference, an empty reference, another number of outputs than of
            meanings, a missing package, or a Java that ends too early.
    """
    _check(systems, references)
    texts = [[_one_line(text) for text in group] for group in references]
    spoken = {name: [_one_line(text) for text in outputs] for name, outputs in systems.items()}
    try:
        scores = {name: {"bleu": bleu(outputs, texts)} for name, outputs in spoken.items()}
        groups = [[mteval_tokens(text) for text in group] for group in texts]
        for name, outputs in spoken.items():
            scores[name]["nist"] = nist([mteval_tokens(text) for text in outputs], groups)
        if shutil.which("java") is None:
            if announce:
                announce(
                    f"no Java on the PATH: {', '.join(NEED_JAVA)} left out; install a Java runtime, version 8 or later"
                )
            return scores
        # one start of Java for all texts
        left = iter(ptb_tokens([*(text for group in texts for text in group), *chain(*spoken.values())]))
        groups = [list(islice(left, len(group))) for group in texts]
        cut = {name: list(islice(left, len(outputs))) for name, outputs in spoken.items()}
        with _meteor() as meteor:
            for name, tokens in progress(cut.items(), "METEOR"):
                scores[name]["meteor"] = 100 * _captions(meteor, tokens, groups)
        for name, tokens in cut.items():
            scores[name]["rouge_l"] = rouge_l(tokens, groups)
            scores[name]["cider"] = cider(tokens, groups)
    except ImportError as error:
        raise DataError(f"the scores need the package {error.name}: pip install 'vbank[nlg]'") from error
    return scores


def bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of a corpus in percent (Papineni et al. 2002, section 2), by sacrebleu.

        BLEU = min(1, exp(1 - r / c)) * (p_1 p_2 p_3 p_4)^(1/4)

    p_n: the share of n-grams found in a reference, each counted at most as often as in the reference that has it most;
    c: words of the outputs; r: words of the references closest in length. Nothing is smoothed.
    """
    from sacrebleu.metrics import BLEU

    most = max(map(len, references))
    columns: list[Any] = [[group[i] if i < len(group) else None for group in references] for i in range(most)]
    scorer = BLEU(lowercase=True, tokenize="13a", smooth_method="none", force=True)
    return scorer.corpus_score(list(outputs), columns).score


def mteval_tokens(text: str) -> Tokens:
    """Lower-cased words as mteval-13a cuts them, by sacrebleu."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()(text).lower().split()


def nist(outputs: Sequence[Tokens], references: Sequence[Sequence[Tokens]], longest: int = 5) -> float:
    """NIST of a corpus (Doddington 2002, equations 2 and 3): BLEU's relative in which a rare n-gram counts for more.

        info(w_1..w_n) = log2( count(w_1..w_{n-1}) / count(w_1..w_n) )         counted over all references
        NIST = penalty * sum_n  sum_hits info / number of the outputs' n-grams

    Our own, since nltk's `corpus_nist` scores an output against the single reference that suits it best and takes the
    length from that one; the challenge's script counts hits in all of a meaning's references together and takes their
    mean length. With one reference a meaning the two are equal.
    """
    from nltk.translate.nist_score import nist_length_penalty
    from nltk.util import ngrams

    counts: Counter[tuple[str, ...]] = Counter()
    for group in references:
        for tokens in group:
            counts[()] += len(tokens)
            for n in range(1, longest + 1):
                counts.update(ngrams(tokens, n))
    total = 0.0
    for n in range(1, longest + 1):
        information, spoken = 0.0, 0
        for tokens, group in zip(outputs, references, strict=True):
            own = Counter(ngrams(tokens, n))
            most: Counter[tuple[str, ...]] = Counter()
            for reference in group:
                most |= Counter(ngrams(reference, n))  # the largest count of any one reference
            hits = own & most
            information += sum(count * math.log2(counts[gram[:-1]] / counts[gram]) for gram, count in hits.items())
            spoken += sum(own.values())
        total += information / spoken if spoken else 0.0
    mean = sum(sum(map(len, group)) / len(group) for group in references)
    return nist_length_penalty(mean, sum(map(len, outputs))) * total


def rouge_l(outputs: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Mean ROUGE-L of tokenised outputs in percent (Lin 2004, section 3.1), by pycocoevalcap.

        R = max LCS / |reference|,  P = max LCS / |output|,  F = (1 + 1.2^2) R P / (R + 1.2^2 P)

    LCS: length of the longest common subsequence; the two maxima are over the references, each on its own.
    """
    from pycocoevalcap.rouge.rouge import Rouge

    return 100 * _captions(Rouge(), outputs, references)


def cider(outputs: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """CIDEr-D of tokenised outputs (Vedantam et al. 2015, section 3 and appendix), by pycocoevalcap.

    Ten times the mean cosine of tf-idf vectors of n-grams, n = 1 to 4, over an output and its references, times a
    Gaussian of the difference in length. The idf counts meanings, so that a single meaning scores 0.
    """
    from pycocoevalcap.cider.cider import Cider

    return _captions(Cider(), outputs, references)


def ptb_tokens(texts: Sequence[str]) -> list[Tokens]:
    """Lower-cased tokens of Stanford's PTB tokenizer without punctuation, one list a text; the program comes with
    pycocoevalcap.

    Raises:
        DataError: Java cannot run it.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    # Not through the package's own class: it writes into its folder and lets Java write to our standard error.
    done = subprocess.run(command, input="\n".join((*texts, "")).encode(), capture_output=True, check=False)
    lines = done.stdout.decode().split("\n")
    if done.returncode or len(lines) < len(texts):
        raise DataError(f"Java's PTB tokenizer failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [[token for token in line.split() if token not in dropped] for line in lines[: len(texts)]]


@contextmanager
def _meteor() -> Iterator[Any]:
    """pycocoevalcap's METEOR 1.5; its Java process ends with the block, whatever happens in it.

    Raises:
        DataError: Java ended in the block, before its last score.
    """
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    java = meteor.meteor_p
    try:
        yield meteor
    except (OSError, ValueError) as error:  # a broken pipe, or an empty line where a number should be
        java.kill()
        said = java.stderr.read().decode(errors="replace").strip()[-300:]
        raise DataError(
            f"Java's METEOR ended before its last score ({said or 'it said nothing'}); it takes up to 2 GB of memory,"
            " so free some and score again"
        ) from error
    finally:
        if meteor.lock.locked():  # the scorer failed halfway; its destructor would wait for ever
            meteor.lock.release()
        for pipe in (java.stdin, java.stdout, java.stderr):
            with suppress(BrokenPipeError):  # what was written to a dead process
                pipe.close()
        java.kill()
        java.wait()


def _captions(scorer: Any, outputs: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """A scorer of pycocoevalcap, which takes tokens joined by spaces under a name for each meaning."""
    said = {i: [" ".join(tokens)] for i, tokens in enumerate(outputs)}
    meant = {i: [" ".join(tokens) for tokens in group] for i, group in enumerate(references)}
    return float(scorer.compute_score(meant, said)[0])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _check(systems: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]]) -> None:
    if not references:
        raise DataError("no references to score against; give at least one meaning")
    for number, group in enumerate(references):
        if isinstance(group, str):
            raise DataError(f"the references of meaning {number} are one string; give a list of strings")
        if not group or not all(text.strip() for text in group):
            raise DataError(f"meaning {number} has {'an empty' if group else 'no'} reference; leave it out")
    for name, outputs in systems.items():
        if len(outputs) != len(references):
            whose = f" of {name}" if name else ""
            raise DataError(
                f"{len(outputs)} outputs{whose} for {len(references)} meanings; give exactly one output a meaning"
            )
