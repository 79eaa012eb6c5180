#!/usr/bin/env python3
"""Debian documentation -> corpus, tokenizer and token files for the demo model.

    prepare_data.py fetch   --work DIR     download the packages of sources.py (apt, nothing is installed)
    prepare_data.py extract --work DIR     documents -> DIR/docs.jsonl, DIR/chat.jsonl, DIR/manifest.json
    prepare_data.py tokens  --work DIR     BPE tokenizer -> DIR/tokenizer, token ids -> DIR/{train,val}.bin.xz
"""

import argparse
import collections
import gzip
import hashlib
import json
import lzma
import multiprocessing
import pathlib
import random
import re
import subprocess
import tarfile

import extract
from sources import PACKAGE_DESCRIPTIONS, SOURCES

VOCAB_SIZE = 4096
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Qwen2's pre-tokenizer: digits one by one, contractions, words with their leading space.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")
SYSTEM_PROMPT = "You are a helpful assistant that answers questions about Debian, Unix and programming."
MAX_ANSWER_CHARS = 900
VALIDATION_SHARE = 0.01


# --- fetch ----------------------------------------------------------------------------------------

def fetch(work):
    debs, lists = work / "debs", work / "apt-lists"
    debs.mkdir(parents=True, exist_ok=True)
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    missing = [s.package for s in SOURCES if not list(debs.glob(f"{s.package}_*.deb"))]
    apt = ["apt-get", f"-oDir::State::Lists={lists.resolve()}", "-oAcquire::Languages=en"]
    subprocess.run([*apt, "-q", "update"], check=True, stdout=subprocess.DEVNULL)
    if missing:
        subprocess.run([*apt, "-q", "download", *missing], check=True, cwd=debs, stdout=subprocess.DEVNULL)
    print(f"{len(list(debs.glob('*.deb')))} packages in {debs}")


# --- extract --------------------------------------------------------------------------------------

def members(deb):
    """(path, bytes) of every file in a .deb, symbolic links left out."""
    process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
    with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
        for member in tar:
            if member.isfile():
                yield member, tar
    process.stdout.close()
    process.wait()


def read_source(job):
    """One package -> (package, deb facts, documents). A document is (title, blocks)."""
    source, deb = job
    fields = subprocess.run(["dpkg-deb", "-f", str(deb), "Version"], check=True, capture_output=True, text=True)
    take, leave = re.compile(source.take), re.compile(source.leave)
    documents = []
    for member, tar in members(deb):
        path = member.name.removesuffix(".gz")
        if not take.search(path) or leave.search(path) or member.size > 4_000_000:
            continue
        data = tar.extractfile(member).read()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        if source.form == "dict":
            documents += [(word, [("text", p) for p in paragraphs]) for word, paragraphs in extract.dictionary(data)]
        else:
            title, blocks = extract.READERS[source.form](data)
            if blocks:
                documents.append((title, blocks))
    facts = {"package": source.package, "version": fields.stdout.strip(), "licence": source.licence,
             "sha256": hashlib.sha256(deb.read_bytes()).hexdigest(), "component": "main"}
    return source, facts, documents


class Seen:
    """Paragraphs already used: the same wording may come once, the same wording with other names a few times."""

    def __init__(self, likeness_limit=3):
        self.exact, self.alike, self.limit = set(), collections.Counter(), likeness_limit

    def fresh(self, text):
        exact = hashlib.md5(re.sub(r"[^a-z]", "", text.lower()).encode()).digest()[:10]
        alike = hashlib.md5(re.sub(r"`[^`]*`|\b\w*[_0-9A-Z]\w*\b|[^a-z ]", "", text).encode()).digest()[:10]
        if exact in self.exact or self.alike[alike] >= self.limit:
            return False
        self.exact.add(exact)
        self.alike[alike] += 1
        return True


def clean(blocks, seen):
    """Blocks -> sections [(heading, [paragraph])] of new prose."""
    sections = [("", [])]
    for kind, text in blocks:
        if kind == "head":
            if re.search(r"[A-Za-z]{3}", text) and len(text) < 120:
                sections.append((text, []))
        elif extract.is_prose(text) and seen.fresh(text):
            sections[-1][1].append(text)
    return [(h, ps) for h, ps in sections if ps]


def clip(paragraphs, limit=MAX_ANSWER_CHARS):
    """As many whole paragraphs as fit; at least one, cut at a sentence."""
    kept, size = [], 0
    for text in paragraphs:
        if kept and size + len(text) > limit:
            break
        if len(text) > limit:
            text = text[:limit].rsplit(". ", 1)[0].rstrip(".:;, ") + "."
        kept.append(text)
        size += len(text)
    return "\n\n".join(kept)


PACKAGE_QUESTIONS = ["What is the package {}?", "What is the Debian package {}?", "What does the package {} do?", "Describe the package {}.",
                     "What is {}?", "Tell me about {}.", "What can I do with {}?", "What is {} used for?"]
TERM_QUESTIONS = ["What is {}?", "What does {} mean?", "Define {}.", "Explain {}.", "What is meant by {}?"]
COMMAND_QUESTIONS = ["What does `{}` do?", "What does {} do?", "What is the command {}?", "What is `{}` for?", "Explain the command `{}`."]
CALL_QUESTIONS = ["What does the function {} do?", "What does `{}` do?", "Explain {}() in C.", "What is {}()?"]
SECTION_QUESTIONS = ["What does {book} say about {topic}?", "Explain {topic}.", "Tell me about {topic}.", "{topic}: what does {book} say?",
                     "Can you explain {topic} as in {book}?"]
HOW_TO = re.compile(r"^(Install|Us|Creat|Build|Configur|Writ|Runn|Chang|Add|Remov|Sett|Mak|Gett|Manag|Updat|Upgrad|Work|Enabl|Disabl)\w*ing\b")
VAGUE = re.compile(r"^(description|overview|introduction|options?|notes?|see also|name|examples?|return value|errors?|parameters|"
                   r"syntax|usage|general|summary|details|arguments|commands|files|background|conclusion|purpose|requirements|"
                   r"methods|remarks?|warnings?|activat\w+ .*|accessing .*|function|functions|other|miscellaneous)\b", re.I)


def chat(rng, question, answer):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if rng.random() < 0.1:
        messages.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
    return messages


def man_chats(rng, title, blocks):
    """A man page's NAME line and first paragraphs answer "What does X do?"."""
    match = re.match(r"(.+)\(([1-8])\w*\)$", title)
    under = collections.defaultdict(list)
    heading = ""
    for kind, text in blocks:
        if kind == "head":
            heading = text
        else:
            under[heading].append(text)
    body = [text for text in under["Description"] if extract.is_prose(text)]
    what = re.match(r"[\w.`, +-]+? -+ (.+)$", "".join(under["Name"][:1]))
    if not match or not what or not body:
        return []
    word = match[1]
    if match[2] in "18":
        lead, questions = f"The command `{word}`: {what[1].rstrip('.')}.", COMMAND_QUESTIONS
    elif match[2] in "23":
        lead, questions = f"The function `{word}`: {what[1].rstrip('.')}.", CALL_QUESTIONS
    else:
        lead, questions = f"{word}: {what[1].rstrip('.')}.", TERM_QUESTIONS
    picked = rng.sample(questions, 3 if match[2] in "18" else 1)
    return [chat(rng, q.format(word), lead + " " + clip(body, 600)) for q in picked]


def package_descriptions(work):
    """(name, synopsis, paragraphs) from the archive's Translation-en index."""
    index = next(p for p in sorted((work / "apt-lists").iterdir()) if "_bookworm_main_i18n_Translation-en" in p.name)
    text = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(index)], check=True, capture_output=True, text=True).stdout
    for record in text.split("\n\n"):
        match = re.match(r"Package: (\S+)\n.*?^Description-en: (.*?)\n(.*)", record, re.S | re.M)
        if not match:
            continue
        paragraphs, current = [], []
        for line in match[3].split("\n"):
            if line.startswith("  "):  # verbatim: lists and examples
                if re.match(r"\s+[-*+o] ", line):
                    current and paragraphs.append(" ".join(current))
                    current = [line.strip()]
                elif current and current[0][:2] in ("- ", "* ", "+ ", "o "):
                    current.append(line.strip())
            elif line.strip() == ".":
                current and paragraphs.append(" ".join(current))
                current = []
            else:
                current.append(line.strip())
        current and paragraphs.append(" ".join(current))
        yield match[1], match[2], [extract.tidy(p) for p in paragraphs]


def package_chats(rng, work):
    seen, chats, count = Seen(likeness_limit=2), [], 0
    for name, synopsis, paragraphs in package_descriptions(work):
        fresh = [p for p in paragraphs if (p[:2] in ("- ", "* ", "+ ", "o ") or extract.is_prose(p)) and seen.fresh(p)]
        if not any(extract.is_prose(p) for p in fresh) or re.search(r"-(dbg|dbgsym|dev|common|data|doc)$", name):
            continue
        count += 1
        lead = f"{name} is a Debian package: {synopsis.rstrip('.')}."
        chats.append(chat(rng, rng.choice(PACKAGE_QUESTIONS).format(name), lead + "\n\n" + clip(fresh)))
    return chats, count


def extract_all(work):
    rng = random.Random(20261120)
    debs = work / "debs"
    jobs = [(s, next(debs.glob(f"{s.package}_*.deb"))) for s in SOURCES]
    seen, manifest, chats = Seen(), [], []
    with open(work / "docs.jsonl", "w") as docs, multiprocessing.Pool(2) as pool:
        for source, facts, documents in pool.imap(read_source, jobs):
            characters = num_documents = num_chats = 0
            for title, blocks in documents:
                sections = clean(blocks, seen)
                if not sections:
                    continue
                made = []
                if source.form == "dict":
                    if len(title) < 48:
                        made = [chat(rng, rng.choice(TERM_QUESTIONS).format(title), clip(sections[0][1]))]
                elif source.form == "man":
                    made = man_chats(rng, title, blocks)
                else:
                    for heading, paragraphs in sections:
                        if heading and rng.random() < 0.25 and len(heading) > 6 and not VAGUE.match(heading) and "(" not in heading:
                            topic = heading[0].lower() + heading[1:] if heading[1:2].islower() else heading
                            if HOW_TO.match(heading) or re.match(r"(How|What|Why|When|Where) ", heading):
                                question = heading.rstrip("?.") + "?" if not HOW_TO.match(heading) else f"Tell me about {topic}."
                            else:
                                question = rng.choice(SECTION_QUESTIONS).format(book=source.title, topic=topic)
                            made.append(chat(rng, question[0].upper() + question[1:], clip(paragraphs)))
                chats += [{"source": source.package, "messages": m} for m in made]
                num_chats += len(made)
                if source.form != "dict":
                    parts = [f"# {title}"] if source.form == "man" else []
                    for heading, paragraphs in sections:
                        if heading:
                            parts.append(("## " if parts else "# ") + heading)
                        parts += paragraphs
                    text = "\n\n".join(parts)
                    if len(text) < 300:
                        continue
                    docs.write(json.dumps({"source": source.package, "text": text}) + "\n")
                    characters += len(text)
                    num_documents += 1
            manifest.append({**facts, "documents": num_documents, "characters": characters, "chats": num_chats})
            print(f"{source.package:26} {num_documents:6} documents {characters / 1e6:7.2f} M characters {num_chats:6} chats", flush=True)
    made, count = package_chats(rng, work)
    chats += [{"source": PACKAGE_DESCRIPTIONS, "messages": m} for m in made]
    manifest.append({"package": PACKAGE_DESCRIPTIONS, "version": "bookworm main, Translation-en", "component": "main",
                     "licence": "each package's own free licence", "documents": 0, "characters": 0, "chats": len(made)})
    with open(work / "chat.jsonl", "w") as out:
        for row in chats:
            out.write(json.dumps(row) + "\n")
    total = sum(m["characters"] for m in manifest)
    answers = sum(len(m["content"]) for row in chats for m in row["messages"])
    (work / "manifest.json").write_text(json.dumps({"sources": manifest, "characters": total, "chat_characters": answers,
                                                    "chats": len(chats)}, indent=1) + "\n")
    print(f"{total / 1e6:.1f} M characters of documents, {len(chats)} chats of {answers / 1e6:.1f} M characters")


# --- tokens ---------------------------------------------------------------------------------------

def render(messages):
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)


def load_corpus(work):
    docs = [json.loads(line)["text"] + "\n" for line in open(work / "docs.jsonl")]
    chats = [render(json.loads(line)["messages"]) for line in open(work / "chat.jsonl")]
    return docs, chats


def train_tokenizer(texts, folder):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": False, "add_prefix_space": False, "bos_token": None, "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "model_max_length": 1024, "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                                          "special": True} for i, t in enumerate(SPECIAL_TOKENS)},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    special = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    return tokenizer


def tokens(work):
    import numpy

    docs, chats = load_corpus(work)
    rng = random.Random(4096)
    stripped = [re.sub(r"<\|im_\w+\|>(user|assistant|system)?\n?", "", c) for c in chats]
    tokenizer = train_tokenizer((t for t in rng.sample(docs + stripped, len(docs) + len(stripped)) if rng.random() < 0.35), work / "tokenizer")
    pieces = {"train": [], "val": []}
    for text in docs + chats:
        share = int.from_bytes(hashlib.md5(text[:400].encode()).digest()[:4], "big") / 2**32
        pieces["val" if share < VALIDATION_SHARE else "train"].append(text)
    end = tokenizer.token_to_id("<|endoftext|>")
    report = {}
    for name, texts in pieces.items():
        rng.shuffle(texts)
        ids = []
        for start in range(0, len(texts), 2000):
            for encoded in tokenizer.encode_batch(texts[start:start + 2000], add_special_tokens=False):
                ids.append(numpy.array(encoded.ids + [end], dtype=numpy.uint16))
        flat = numpy.concatenate(ids)
        with lzma.open(work / f"{name}.bin.xz", "wb", preset=4) as out:
            out.write(flat.tobytes())
        report[name] = {"texts": len(texts), "tokens": int(flat.size), "characters": sum(map(len, texts))}
        print(name, report[name])
    (work / "tokens.json").write_text(json.dumps(report, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["fetch", "extract", "tokens"])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for everything downloaded and made")
    options = parser.parse_args()
    {"fetch": fetch, "extract": extract_all, "tokens": tokens}[options.step](options.work)


if __name__ == "__main__":
    main()
