"""The 66 subjects of TMMLU+: Chinese name and category.

Source: ievals (iKala), `subject.tsv` and `categories` in `settings.py`. Published figures are the plain
mean of the four category means, each the plain mean of its subjects ("macro-4"). The file there lists a
67th subject, `linear_algebra`, that is not part of the 66: it has a name and a category, and no part in
macro-4.
"""

from __future__ import annotations

CATEGORIES = {
    "STEM": "理工",
    "humanities": "人文",
    "social_sciences": "社會科學",
    "other": "其他（商業、醫療、雜項）",
}

_BY_CATEGORY = {
    "STEM": {
        "organic_chemistry": "有機化學",
        "advance_chemistry": "化學",
        "physics": "物理",
        "secondary_physics": "高中物理",
        "pharmacy": "藥劑學",
        "statistics_and_machine_learning": "統計與機器學習",
        "computer_science": "資訊工程",
        "basic_medical_science": "基礎醫學",
        "junior_science_exam": "國中會考基測自然科",
        "junior_math_exam": "國中會考基測數學科",
        "tve_mathematics": "統測數學",
        "tve_natural_sciences": "統測自然科",
        "junior_chemistry": "國中理化",
        "engineering_math": "工程數學",
    },
    "humanities": {
        "general_principles_of_law": "法學大意",
        "anti_money_laundering": "洗錢防制",
        "jce_humanities": "指考人文科目",
        "introduction_to_law": "法律概論",
        "taxation": "稅務",
        "trust_practice": "信託實務",
        "administrative_law": "行政法",
    },
    "social_sciences": {
        "clinical_psychology": "臨床心理學",
        "ttqav2": "台灣在地用語",
        "human_behavior": "人類行為與社會",
        "national_protection": "軍事",
        "politic_science": "政治",
        "educational_psychology": "教育心理",
        "education_(profession_level)": "教育專業",
        "economics": "經濟學",
        "occupational_therapy_for_psychological_disorders": "心理障礙職能治療學",
        "geography_of_taiwan": "台灣地理",
        "physical_education": "體育",
        "macroeconomics": "總經",
        "chinese_language_and_literature": "國文",
        "junior_chinese_exam": "國中會考基測國文",
        "tve_chinese_language": "統測國文",
        "education": "教育常識",
        "three_principles_of_people": "三民主義",
        "taiwanese_hokkien": "閩南語",
    },
    "other": {
        "dentistry": "牙醫學",
        "traditional_chinese_medicine_clinical_medicine": "中醫臨床醫學",
        "technical": "技術工相關",
        "culinary_skills": "餐旅",
        "mechanical": "機械與機電概論",
        "logic_reasoning": "邏輯思維",
        "real_estate": "房地產",
        "finance_banking": "金融與法規",
        "marketing_management": "行銷管理",
        "business_management": "企業管理",
        "agriculture": "農業",
        "official_document_management": "機關文書",
        "financial_analysis": "財務分析",
        "management_accounting": "管理會計",
        "veterinary_pathology": "獸醫病理學",
        "accounting": "會計學",
        "fire_science": "火災學",
        "optometry": "視光學",
        "insurance_studies": "保險學",
        "pharmacology": "藥理學",
        "veterinary_pharmacology": "獸醫藥理學",
        "nautical_science": "航海",
        "auditing": "審計學",
        "trade": "貿易",
        "tve_design": "統測設計",
        "junior_social_studies": "國中會考基測社會科",
        "music": "音樂科",
    },
}

_BEYOND = {"linear_algebra": ("STEM", "線代")}  # subject.tsv has it, the list of tasks of ievals does not

SUBJECTS = {subject: name for subjects in _BY_CATEGORY.values() for subject, name in subjects.items()}
_CATEGORY_OF = {subject: category for category, subjects in _BY_CATEGORY.items() for subject in subjects}
_CATEGORY_OF |= {subject: category for subject, (category, _) in _BEYOND.items()}
_NAMES = SUBJECTS | {subject: name for subject, (_, name) in _BEYOND.items()}


def chinese_name(subject: str) -> str:
    """Return the Chinese name of a subject; a subject that TMMLU+ does not have is its own name."""
    return _NAMES.get(subject, subject)


def subject_title(subject: str) -> str:
    """Return the Chinese name of a subject for people, or a note that there is none."""
    return chinese_name(subject) or "（未註明科目）"


def category_of(subject: str) -> str | None:
    """Return one of CATEGORIES, or None for a subject that TMMLU+ does not have."""
    return _CATEGORY_OF.get(subject)
