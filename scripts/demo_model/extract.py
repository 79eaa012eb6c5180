"""Readers: one document in a package's format -> title and a list of (kind, text) blocks.

Kinds are "head" and "text". Tables, listings, navigation and indexes are dropped: what stays is prose.
"""

import re

import lxml.etree
import lxml.html

TYPOGRAPHY = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--",
    "\u2026": "...", "\u00a0": " ", "\u200b": "", "\ufeff": "", "\u2010": "-", "\u2011": "-",
    "\u00b6": "", "\u00ad": "", "\u2192": "->", "\u2022": "", "\ufb01": "fi", "\ufb02": "fl",
})
STOP_WORDS = frozenset(
    "the a an of to in is are be and or for that this with it as by on from if you not can will when which has have "
    "may use used at was your their its into than then there these must should would could also only all any".split())


def tidy(text):
    return re.sub(r"\s+", " ", text.translate(TYPOGRAPHY)).strip()


def is_prose(text):
    words = text.split()
    if len(words) < 6 or len(text) < 36 or text[-1] not in ".!?:;)\"'`":
        return False
    letters = sum(c.isalpha() or c == " " for c in text)
    ascii_share = sum(c < "\x7f" for c in text) / len(text)
    if letters < 0.84 * len(text) or ascii_share < 0.98 or max(map(len, words)) > 48:
        return False
    stop = sum(w.lower().strip("(,.") in STOP_WORDS for w in words)
    return stop >= 2 and stop >= 0.16 * len(words)


# --- HTML and Mallard ---------------------------------------------------------------------------

DROP = frozenset("script style nav table pre header footer svg math head form button select noscript info "
                 "screen code-block media img".split())
DROP_CLASS = re.compile(r"\b(sphinxsidebar|related|toc|toctree-wrapper|navheader|navfooter|nav|headerlink|item-decl|"
                        r"src-?link|since|srclink|breadcrumbs?|footer|sidebar|highlight|navigation|out-of-band|"
                        r"rightside|anchor|copyright|revhistory|admonition-title|refnamediv|programlisting)\b")
INLINE = frozenset("a abbr acronym b bdi bdo big cite code del dfn em font i ins kbd label q s samp small span strike "
                   "strong sub sup tt u var wbr gui guiseq key keyseq app file cmd link sys".split())
CODE = frozenset("code tt kbd samp cmd".split())
HEADS = frozenset("h1 h2 h3 h4 h5 h6 title".split())


class Blocks:
    """Collects runs of inline text into blocks; a short definition term leads its definition."""

    def __init__(self):
        self.blocks, self.run, self.term = [], [], ""

    def flush(self, tag):
        text = tidy("".join(self.run))
        self.run = []
        if not text:
            return
        if tag in HEADS:
            self.term = ""
            self.blocks.append(("head", re.sub(r"^([0-9A-Z]{1,2}\.)?([0-9]+\.?)*\s+(?=\S)", "", text).strip("# `")))
        elif tag == "dt":
            self.term = text if len(text) <= 48 else ""
        else:
            if self.term:
                text, self.term = f"{self.term.rstrip(':')}: {text}", ""
            self.blocks.append(("text", text))


def walk(node, out, tag):
    """`tag`: the innermost block element that the inline text at this point belongs to."""
    for child in node:
        name = child.tag if isinstance(child.tag, str) else None
        if name is not None:
            name = name.rsplit("}", 1)[-1].lower()
            attributes = child.get("class") or ""
            if name in DROP or (attributes and DROP_CLASS.search(attributes)):
                if name not in INLINE:
                    out.flush(tag)
            elif name == "br":
                out.run.append(" ")
            elif name in INLINE:
                quote = "`" if name in CODE and tag not in HEADS and len(child) < 4 else ""
                body = (child.text or "")
                if quote and out.run and out.run[-1].endswith("`"):
                    quote = ""
                out.run.append(quote + body)
                walk(child, out, tag)
                out.run.append(quote)
            else:
                out.flush(tag)
                inner = name if name not in ("div", "section", "span") else tag if tag in ("dt",) else name
                out.run.append(child.text or "")
                walk(child, out, inner)
                out.flush(inner)
        if child.tail:
            out.run.append(child.tail)


def html(data):
    try:
        root = lxml.html.fromstring(data)
    except (lxml.etree.ParserError, ValueError):
        return "", []
    body = root.find("body")
    for path in ('.//*[@role="main"]', ".//main", './/*[@id="main-content"]', './/*[@id="content"]', './/*[@id="page-content"]'):
        found = root.find(path)
        if found is not None and len(found.text_content()) > 400:
            body = found
            break
    if body is None:
        body = root
    out = Blocks()
    out.run.append(body.text or "")
    walk(body, out, "body")
    out.flush("body")
    title = root.find(".//title")
    title = tidy(title.text_content()) if title is not None else ""
    return title, out.blocks


def mallard(data):
    try:
        root = lxml.etree.fromstring(data)
    except lxml.etree.XMLSyntaxError:
        return "", []
    out = Blocks()
    walk(root, out, "page")
    title = next((t for k, t in out.blocks if k == "head"), "")
    return title, out.blocks


# --- man(7) -------------------------------------------------------------------------------------

ESCAPES = [
    (r'\\".*$', ""), (r"\\\(aq|\\\(cq|\\\(oq", "'"), (r"\\\*?\((lq|rq|dq)|\\\*?\[(lq|rq|dq)\]", '"'),
    (r"\\\((em|en)|\\\[(em|en)\]", "--"), (r"\\\((bu|co|rg|tm)|\\\[(bu|co)\]", ""), (r"\\\(hy|\\-", "-"),
    (r"\\\((ti|ha|ga|rs)", "~"), (r"\\e|\\\[rs\]", r"\\"), (r"\\[&|^/,:%c)]|\\\{|\\\}", ""), (r"\\[~0 ]", " "),
    (r"\\s[-+]?[0-9]", ""), (r"\\[mMhvwN]\[[^]]*\]|\\[hvwN]'[^']*'", ""), (r"\\\*?\([A-Za-z<>=!+-]{2}|\\\*?\[[^]]*\]|\\\*.", ""),
]
ESCAPES = [(re.compile(p, re.M), r) for p, r in ESCAPES]
SKIP_SECTIONS = re.compile(r"SYNOPSIS|SEE ALSO|COLOPHON|AUTHOR|COPYRIGHT|REPORTING|AVAILABILITY|BUGS|HISTORY|ATTRIBUTES|CONFORMING|STANDARDS")


def roff_inline(text):
    text = re.sub(r"\\f\[?B\]?([^\\\n]{1,40})\\f\[?[RPI]\]?", r"`\1`", text)
    text = re.sub(r"\\f(\[[A-Z]*\]|\([A-Z]{2}|.)", "", text)
    for pattern, replacement in ESCAPES:
        text = pattern.sub(replacement, text)
    return text.replace("\\", "")


def arguments(line):
    return [a.strip('"') for a in re.findall(r'"(?:[^"]|"")*"|\S+', line)]


def man(data):
    text = data.decode("utf-8", "replace")
    if re.search(r"^\.(Dd|Sh)\b", text, re.M) or re.search(r"^\.so ", text, re.M):
        return "", []
    out = Blocks()
    title, hidden, expect_term, skip = "", 0, False, False

    def flush(tag="p"):
        if skip:
            out.run = []
        out.flush(tag)

    for line in text.split("\n"):
        if line.startswith(("'", ".\\\"")):
            continue
        name, _, rest = line.partition(" ")
        if name in (".nf", ".EX", ".TS", ".Vb", ".SY"):
            flush()
            hidden += 1
        elif name in (".fi", ".EE", ".TE", ".Ve", ".YS"):
            hidden = max(0, hidden - 1)
        elif name == ".TH":
            parts = arguments(roff_inline(rest))
            title = f"{parts[0].lower()}({parts[1]})" if len(parts) > 1 else ""
        elif name in (".SH", ".SS"):
            flush()
            hidden = 0
            heading = roff_inline(" ".join(arguments(rest))).replace("`", "")
            if name == ".SH":
                skip = bool(SKIP_SECTIONS.search(heading.upper()))
            if not skip and heading:
                out.term = ""
                out.blocks.append(("head", heading.capitalize() if heading.isupper() else heading))
        elif hidden:
            continue
        elif name in (".PP", ".P", ".LP", ".RS", ".RE", ".sp", ".HP", ".br"):
            flush()
        elif name in (".TP", ".TQ"):
            flush()
            expect_term = True
        elif name == ".IP":
            flush()
            parts = arguments(roff_inline(rest))
            if parts and len(parts[0]) > 2 and not skip:
                out.run = [parts[0]]
                flush("dt")
        elif line.startswith("."):
            parts = arguments(rest)
            if name in (".B", ".SB") and len(rest) < 40:
                word = "`" + " ".join(parts) + "` "
            elif name in (".BR", ".BI", ".RB", ".IB") and parts:
                word = "".join(f"`{p}`" if name[1 + i % 2] == "B" and re.fullmatch(r"[\w\\./:+-]+", p) else p for i, p in enumerate(parts)) + " "
                word = word.replace("``", "")
            elif name in (".I", ".IR", ".RI", ".SM", ".R"):
                word = ("" if name in (".IR", ".RI") else " ").join(parts) + " "
            elif name in (".UR", ".UE", ".MT", ".ME"):
                word = " "
            else:
                continue
            out.run.append(roff_inline(word))
            if expect_term:
                expect_term = False
                flush("dt")
        else:
            if not line.strip():
                flush()
            out.run.append(roff_inline(line) + " ")
            if expect_term:
                expect_term = False
                flush("dt")
    flush()
    return title, [(k, t.replace("``", "`")) for k, t in out.blocks]


# --- POD ----------------------------------------------------------------------------------------

POD_ENTITY = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/", "amp": "&", "quot": '"'}


def pod_inline(text):
    text = re.sub(r"\b([A-Z])<<+\s+(.*?)\s+>>+", r"\1<\2>", text, flags=re.S)
    for _ in range(4):
        text = re.sub(r"\bE<(\w+)>", lambda m: POD_ENTITY.get(m[1], ""), text)
        text = re.sub(r"\bL<(?:([^|<>]*)\|)?([^<>]*)>", lambda m: m[1] or m[2].strip("/\""), text)
        text = re.sub(r"\bC<([^<>]*)>", r"`\1`", text)
        text = re.sub(r"\b[XZ]<[^<>]*>", "", text)
        text = re.sub(r"\b[BIFS]<([^<>]*)>", r"\1", text)
    return text


def pod(data):
    out, title, skipping = Blocks(), "", False
    for part in re.split(r"\n\s*\n", data.decode("utf-8", "replace")):
        part = part.strip("\n")
        if part.startswith("=begin"):
            skipping = True
        elif part.startswith("=end"):
            skipping = False
        elif skipping or not part or part[0] in " \t" or part.startswith(("=for", "=encoding", "=over", "=back", "=cut", "=pod")):
            continue
        elif part.startswith("=head"):
            out.run = [pod_inline(part.split(None, 1)[1] if " " in part else "")]
            out.flush("h1")
        elif part.startswith("=item"):
            term = pod_inline(part[5:].strip())
            if re.search(r"[A-Za-z]{3}", term):
                out.run = [term]
                out.flush("dt")
        else:
            out.run = [pod_inline(part)]
            out.flush("p")
            if not title and out.blocks:
                title = out.blocks[-1][1].split(" - ")[0]
    return title, out.blocks


# --- dictd --------------------------------------------------------------------------------------

def dictionary(data):
    """-> [(headword, [paragraph])]"""
    entries, words, lines = [], [], []

    def close():
        if words and lines:
            body = re.sub(r"\{([^{}]*)\}", lambda m: m[1].split(" (http")[0], "\n".join(lines))
            paragraphs = [tidy(p) for p in re.split(r"\n\s*\n", body)]
            paragraphs = [re.sub(r"^(<[^>]*>\s*)+|^\[[a-z][^]]*\]\s*", "", p) for p in paragraphs]
            entries.append((tidy(words[0]), paragraphs))

    for line in data.decode("utf-8", "replace").split("\n"):
        if line and not line[0].isspace():
            if lines:
                close()
                words, lines = [], []
            words.append(line.strip())
        elif words:
            if not lines and re.match(r"\s*/.*/|\s(n|v|adj|adv|excl)\.", line):
                continue
            lines.append(line)
    close()
    return entries


READERS = {"html": html, "mallard": mallard, "man": man, "pod": pod}
