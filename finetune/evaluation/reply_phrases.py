r"""Patterns of what replies say: answers, verdicts, refusals, and what takes an answer back.

They are matched on text in NFKC without Markdown. Each matches a bounded length from a given place: no repeat
is unbounded but of one kind of character at a time.
"""

from __future__ import annotations

import re

from finetune.data.question import LETTERS

TAG = re.compile(r"<\s{0,4}(/?)\s{0,4}(?:think(?:ing)?|reason(?:ing)?|thoughts?)\s{0,4}>", re.IGNORECASE)
CHANNEL = "assistantfinal"  # where gpt-oss's reply begins once its special tokens are left out
THINKING = re.compile(r"\s*analysis(?=[A-Z\u4e00-\u9fff])")  # its thoughts, without end
CIRCLED = {
    ord("①") + number: chr(0xE000 + number) for number in range(len(LETTERS))
}  # NFKC makes digits of them
BOX = re.compile(r"\\{1,4}(?:boxed|box|fbox)\s{0,4}\{|[{}]")
TAGGED = re.compile(r"<answer>([^<]{0,2000})</answer>", re.IGNORECASE)
LATEX = re.compile(
    r"\\{1,4}(?:(?:text|textbf|mathrm|mathbf|bm|left|right|rm|bf|quad)(?![a-z])|[()\[\],;! ])|[{}$]"
)
MARKDOWN = re.compile(r"\*{1,3}|_{2}|`|^[#>\s]+", re.MULTILINE)
BOLD = re.compile(r"\*\*([^*\n]{1,300})\*\*")

OPEN, CLOSE = r"[(\[【〔「『《\"'“]?", r"[)\]】〕」』》\"'”]?"
NAMED = r"(?:選項|选项|option\b|choice\b)?"
LABEL = (
    rf"\s{{0,3}}{OPEN}\s{{0,3}}{NAMED}\s{{0,3}}:?\s{{0,3}}{OPEN}\s{{0,3}}"
    r"(?P<letter>[A-Ja-j\ue000-\ue009])(?![A-Za-z0-9\ue000-\ue009]|-\w|\+\+|'[a-z])"
)
NOT = (
    r"(?P<not>(?:並|并|絕|绝|一定|應該|应该|應|应|可能)?(?:不|非)(?:會|会|應|应|能|可能|該|该)?"
    r"|\s{0,3}not\b|n't\b)?"
)
IS = r"(?:是|為|为)?(?:選擇|选择|選(?!項)|选(?!项))?"
FIRST = r"(?P<final>最終的?|最终的?|最後的?|最后的?)?"
STATED = re.compile(
    rf"(?:{FIRST}(?:(?:正確|正确|最佳|標準|标准|合適|合适|適當|适当)的?)?(?:答案|解答|正解)(?:選項|选项)?"
    rf"(?:應該|应该|應|应|就|便|當然|当然|會|会)?{NOT}{IS}"
    rf"|(?:正確|正确|最佳)的?(?:選項|选项){NOT.replace('not>', 'not2>')}(?:應該|应该|應|应|就)?"
    r"(?:是|為|为|(?=】?\s{0,3}:))"
    r"|(?<![一-鿿])(?:答|正解)(?=\s{0,3}:)"
    r"|(?:(?<![一-鿿])|(?<=[應故該我會以此就題要須能當需而应该会题须当後后]))(?:選擇|选择|選|选)(?![項项擇择])"
    r"|(?<=不是)(?P<but>[^\n,。;]{1,20},?\s{0,3}而是)"
    r"|(?P<final2>\bfinal\s{1,3})?\b(?:(?:correct|right|best)\s{1,3})?answer\b['\"]?"
    r"(?:\s{0,3}(?:is|seems\sto\sbe|should\sbe|would\sbe|must\sbe|=|-|—))?(?P<not3>\s{1,3}not\b|n't\b)?"
    r"|\b(?:correct|right|best)\s{1,3}(?:option|choice)\s{1,3}(?:is|would\sbe|should\sbe)(?P<not4>\s{1,3}not\b|n't\b)?"
    r"|\bI(?:\swould|\swill|'d)?\s(?:choose|pick|select|go\swith)|\bI\s(?:think|believe)\sit(?:'s|\sis)"
    rf")[)\]】〕」』]?(?:\s{{0,3}}[:=])?(?={LABEL}|)",
    re.IGNORECASE,
)
JUDGED = re.compile(
    rf"(?:(?:選項|选项|option|choice)\s{{0,3}}|(?<![A-Za-z0-9])){OPEN}(?P<letter>[A-Ja-j])(?![A-Za-z0-9]){CLOSE}"
    r"(?:[「『(\"“][^」』)\"”\n]{1,40}[」』)\"”])?"
    r"\s{0,3}(?:選項|选项)?\s{0,3}(?:才|就)?(?:是|為|为)?(?:唯一)?\s{0,3}"
    r"(?:正確|正确|對的|对的|is\s(?:the\s)?(?:only\s)?(?:correct|right))"
    rf"|正(?:確|确)的[一-鿿]{{0,6}}?(?:是|為|为):?\s{{0,3}}{LABEL.replace('letter', 'letter2')}",
    re.IGNORECASE,
)
JUDGED_TEXT = re.compile(r"(?:才|就)?是(?:最|唯一)?正(?:確|确)(?:的|答案|選項|选项)")
NEXT = re.compile(r"[(\[【]?([A-J])[)\]】.:、]")  # the label of an option in a list of them
OPENING = re.compile(
    rf"(?:the\s)?{LABEL}(?P<close>\s{{0,3}}{CLOSE})(?P<mark>\s{{0,3}}[.:、,。;)]|)", re.IGNORECASE
)

# What stands around a statement and takes it back.
CLAUSE = re.compile(r"[。!?;,\n:]|\.\s")
CONDITION = re.compile(
    r"假設|假设|假如|如果|倘若|假使|要是|除非|若|是否|為什麼|为什么|為何|为何|無法|无法|不能|不確定|不确定|不知道|難以|难以|有人"
    r"|\b(?:if|whether|why|suppose|supposing|assume|assuming|unless|cannot|can't|not\ssure|unsure|unable)\b",
    re.IGNORECASE,
)
DENIED = re.compile(
    r"(?:不|別|勿|非|没|沒)[一-鿿]{0,2}$|\b(?:not|never|n't)(?:\s\w{1,8})?\s{1,3}$", re.IGNORECASE
)
ASKED = re.compile(rf"\s{{0,3}}{CLOSE}\s{{0,3}}(?:[^\n。!?,;]{{0,12}}(?:嗎|吗|\?)|呢|的話|的话|的人)")
WRONG = re.compile(
    rf"\s{{0,3}}{CLOSE}\s{{0,3}}(?:選項|选项|這個選項)?(?:明顯|明显|顯然|显然|也|都|就)?(?:是|為|为)?\s{{0,3}}"
    r"(?:不|錯|错|誤|误|並非|并非|(?:is|are|was)\s(?:not|wrong|incorrect|false)|isn't|cannot|can't)",
    re.IGNORECASE,
)
JOINED = re.compile(
    rf"\s{{0,3}}{CLOSE}\s{{0,3}}(?:(?:還是|还是|或者?|和|與|与|及|跟|以及|、|/|&|\+|~|\band\b|\bor\b)\s{{0,3}}|(?P<comma>,)\s{{0,3}}"
    rf"|(?=[(\[【]\s?[A-Ja-j]\s?[)\]】]))(?:選項|选项|option\s)?\s{{0,3}}{OPEN}(?P<letter>[A-Ja-j\ue000-\ue009])(?![A-Za-z0-9])"
    r"(?P<after>\s{0,3}(?:[)\].,。;!、]|$|\n|\band\b|\bor\b|和|或|與|及))?",
    re.IGNORECASE,
)
LEAD = re.compile(r"\s*(?:所以|因此|好的|這題|這一題|本題|此題|我認為|我的|我會?|the)?[,:\s]*", re.IGNORECASE)
ARTICLE = re.compile(r"\s+(?!is\b|because\b|since\b|as\b)[a-z]")
SMALL = re.compile(r"\s*(?:$|[)\].,:;!】」』\"'”、。\n])")
ALONE = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])")
ALONE_SMALL = re.compile(r"(?<![A-Za-z])([a-j])(?![A-Za-z])", re.IGNORECASE)
REASON = re.compile(
    r"\s{0,3}[,。.;:、]?\s{0,3}(?:因為|因为|由於|由于|理由|because\b|since\b|正確|正确|對|对|is\b)",
    re.IGNORECASE,
)
LISTED = re.compile(r"\s{0,3}[(\[【]?([A-J])(?:[)\]】.:、]|\s{1,3}[:.])")
REFUSAL = re.compile(
    r"(?:抱歉|對不起|对不起|很遺憾|很遗憾|不好意思)[^\n]{0,60}?(?:無法|无法|不能|沒辦法|没办法|沒有辦法|不便|不會|难以|難以)"
    r"|(?:無法|无法|不能|沒辦法|没办法|沒有辦法|拒絕|拒绝|不便)[一-鿿]{0,6}?(?:回答|作答|判斷|判断|提供|確定|确定|選擇|选择|協助|协助|給出|给出)"
    r"|\bI(?:'m|\sam)\s(?:very\s|so\s)?(?:sorry|unable|not\sable)|\b(?:cannot|can't|can\snot|won't)\s(?:\w{1,12}\s)?"
    r"(?:answer|determine|provide|assist|help|choose|select)|\bas\san\sAI\b",
    re.IGNORECASE,
)  # fmt: skip
