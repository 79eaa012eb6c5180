#!/usr/bin/env python3
"""Encodes texts with tiktoken, as reference for crates/lm/src/tokenizer/tiktoken.rs.

    python scripts/tiktoken_golden/make.py             # needs tiktoken; writes tiktoken/golden.json
    python scripts/tiktoken_golden/make.py RANKS OUT   # the same with a published rank file; to compare by hand,
                                                       # put OUT in golden.json's place and run the tests

The ranks are trained on the spot, on this repository's documents and the texts below; the pattern and the
special tokens are those of Kimi's tokenization_kimi.py.
"""

import base64
import json
import random
import sys
from pathlib import Path

import tiktoken
from tiktoken._educational import bpe_train
from tiktoken.load import load_tiktoken_bpe

ROOT = Path(__file__).resolve().parents[2]
PATTERN = "|".join(
    [
        r"""[\p{Han}]+""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)
TEXTS = [
    "",
    "The quick brown fox jumps over the lazy dog. It's a dog's life, they'LL say; WE'VE seen it.",
    "Die Größe der Übung überrascht: daß Straßenbahnen schneller führen, wußte niemand.",
    "L'été dernier, à Besançon, où naquit Hugo, j'ai vu cœurs et œuvres — déjà-vu…",
    "El niño comió piñas en el corazón de la montaña. ¿Por qué? ¡Porque sí!",
    "Съешь ещё этих мягких французских булок, да выпей чаю. Київ — столиця України.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好，我们去公园散步吧！共有12345个人。",
    "いろはにほへと ちりぬるを。カタカナとひらがなと漢字が混ざった文です。「東京」2026年",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "हिन्दी में लिखा हुआ एक वाक्य, जिसमें मात्राएँ हैं।",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน",
    "Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul'da IĞDIR",
    "Emoji: 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ and e\u0301 combining, ﬁ ligature, Ⅷ ½ ² ٣",
    "def f(x):\n\tif x > 0:\r\n        return [x**2 for _ in range(10)]  # comment\n\n\n    pass\n",
    "1234567890 3.14159 1,000,000 0xDEADBEEF 1e-9 2026-11-21T10:56:17Z",
    "   leading,  double   spaces \t\t tabs \n \n\n trailing   ",
    "\u00a0nbsp\u2003em space\u200bzero width\ufeffbom\u3000ideographic",
    "<|im_user|>user<|im_middle|>hi<|im_end|><|im_assistant|>assistant<|im_middle|>",
    "[BOS]x[EOS] <|reserved_token_{last}|> <|im_end> |im_end|> <|unknown|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "================================================================ ----- ======= ~~~",
    "hahahahahahahaha nananananana xyxyxyxyxyxyxyx ABABABABABAB",
    "CamelCaseAndSCREAMING_SNAKE andMixedΑΒΓabc中文English混合テスト한국어mixed",
    "\x00\x01\x7f control \x1b[31mred\x1b[0m",
]
SPECIAL = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"]


def random_texts(count):
    """Text that nobody would write, of letters that all ranks know."""
    rng = random.Random(7)
    letters = ["a", "b", "A", " ", " ", "\n", "'", "s", "=", "-", "1", "é", "ß", "中", "文", "\r", "\t", "я", "👍", "\u0301"]
    for _ in range(count):
        few = rng.sample(letters, rng.randint(1, 6))
        yield "".join(rng.choice(few) for _ in range(rng.randint(1, 60)))


def documents():
    return [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))]


def main():
    published = len(sys.argv) == 3
    if published:
        ranks, out, count = load_tiktoken_bpe(sys.argv[1]), Path(sys.argv[2]), 20_000
    else:
        text = "\n".join(TEXTS * 2 + [document[:6000] for document in documents()])
        ranks = bpe_train(data=text, vocab_size=900, pat_str=PATTERN.replace("&&[^\\p{Han}]", ""), visualise=None)
        out, count = ROOT / "crates/lm/src/tokenizer/tiktoken/golden.json", 150
    first = len(ranks)
    names = {first + 2 * i: name for i, name in enumerate(SPECIAL)}
    special = {names.get(i, f"<|reserved_token_{i}|>"): i for i in range(first, first + 256)}
    encoding = tiktoken.Encoding("kimi", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
    texts = [text.replace("{last}", str(first + 255)) for text in TEXTS]
    texts += [*random_texts(count)] + (documents() if published else [])
    golden = {
        "made_by": f"tiktoken {tiktoken.__version__}",
        "ranks": [base64.b64encode(token).decode() for token, _ in sorted(ranks.items(), key=lambda item: item[1])],
        "special": names,
        "cases": [{"text": text, "ids": encoding.encode(text, allowed_special="all")} for text in texts],
    }
    out.parent.mkdir(exist_ok=True)
    rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in golden.items())
    out.write_text("{" + rows.replace('}, {"text"', '},\n{"text"') + "}\n", encoding="utf-8")
    print(len(ranks), "ranks,", len(texts), "texts:", out)


if __name__ == "__main__":
    main()
