"""Files of --draw, and how those of this program are known."""

from __future__ import annotations

import re

from finetune.reports.report_folder import ReportFiles
from finetune.reports.svg import MADE_HERE

NAMES = ("bert", "gpt", "families", "layers", "transfer")
OF_FIGURES = ReportFiles(
    tuple(f"{name}.svg" for name in NAMES),
    re.compile(rf"({'|'.join(NAMES)})\.svg|\.lock|\..*\.half"),
    title="這支程式畫的圖",
    noun="圖",
    signature=MADE_HERE,
)
