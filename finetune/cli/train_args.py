"""Flags of the training script and their values as one typed object."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.cli.flag_types import choice, choices, float_in, int_in, path, ratios
from finetune.cli.parser import Parser
from finetune.cli.training_synonyms import TRAINING
from finetune.data.bad_rows import reset_log_once
from finetune.data.cleaning import CLEANING
from finetune.data.encodings import choose_encoding
from finetune.data.known_exams import NAMED, default_revision
from finetune.prompts.scoring_methods import METHOD_OF_OBJECTIVE, ORDERS
from finetune.runtime import console

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")  # values of --report_to
MASKINGS = ("token", "word", "span")  # values of --masking, beside `answer`
DEFAULT_DEEPSPEED_CONFIG = "ds_config.json"

DEMO_DEFAULTS: dict[str, object] = {  # defaults with --demo; measured for two cores, see README
    "objective": "mlm", "num_epochs": 30, "train_batch_size": 32, "learning_rate": 1e-3, "max_length": 64,
    "early_stopping_patience": 10,
}  # fmt: skip

CAUSAL_DEFAULTS: dict[str, object] = {
    "model_name_or_path": "Qwen/Qwen2.5-0.5B", "split_ratio": (0.95, 0.05, 0.0), "max_length": 2048,
    "train_batch_size": 16, "early_stopping_patience": 0,
}  # fmt: skip
ROW_DEFAULTS: dict[str, object] = {
    "dataset": "", "split_ratio": (0.8, 0.1, 0.1), "early_stopping_patience": 0,
}  # fmt: skip
TASK_DEFAULTS: dict[str, dict[str, object]] = {  # task -> defaults of flags that were not given
    "exam": {},
    "mlm": {
        "dataset": "",
        "split_ratio": (0.95, 0.05, 0.0),
        "max_chars": 500,
        "learning_rate": 5e-5,
        "num_epochs": 10,
        "early_stopping_patience": 3,
        "masking": "word",
    },
    "classify": {**ROW_DEFAULTS, "num_epochs": 5},
    "tag": {**ROW_DEFAULTS, "num_epochs": 5},
    "span": {**ROW_DEFAULTS, "num_epochs": 3},
    "seq2seq": {
        **ROW_DEFAULTS,
        "model_name_or_path": "google/mt5-small",
        "learning_rate": 3e-4,
        "train_batch_size": 16,
        "num_epochs": 3,
        "exam_limit": 200,
    },
    "cpt": {**CAUSAL_DEFAULTS, "dataset": "", "learning_rate": 2e-4, "num_epochs": 1},
    "sft": {**CAUSAL_DEFAULTS, "learning_rate": 1e-5, "num_epochs": 3},
}


@dataclass
class TrainArgs:
    """Values of all flags of the training script, by name; see `build_parser` for their meaning.

    A run fills in what the data and the model decide: `learning_rate`, `text_column`, `model_name_or_path`.
    """

    # what
    task: str
    objective: str
    model_name_or_path: str
    allow_pickle: bool
    from_scratch: bool
    demo: bool
    # data
    dataset: str
    revision: str
    subjects: str
    split_ratio: tuple[float, float, float]  # train, validation, held-out
    pool: str
    on_bad_rows: str
    encoding: str | None  # None: from the content
    answers_from: str
    max_length: int  # tokens of a row
    show_examples: int
    # masks
    masking: str
    mask_rate: float
    all_masked: bool
    preview_masks: int  # rows; 0: train
    # classification
    text_column: str
    label_column: str
    multi_label: bool
    class_weights: bool
    dataset_config_name: str
    # tagged texts, answers about passages, texts written from texts
    stride: int  # tokens that two windows of a long row share
    max_answer_length: int  # tokens
    prefix: str
    max_target_length: int  # tokens
    # texts
    clean: list[str]
    min_chars: int
    max_chars: int
    inspect: bool
    # replies
    template: str
    train_on_prompt: bool
    # steps
    num_epochs: int
    max_steps: int  # 0: by num_epochs
    early_stopping_patience: int  # epochs; 0: never
    train_batch_size: int  # sequences per optimizer step, all ranks
    micro_batch_size: int  # sequences per forward pass and rank; 0: by length
    auto_micro_batch: bool
    learning_rate: float | None  # None: by the width of a model with random weights
    on_nan: str
    warmup_ratio: float  # share of all steps
    weight_decay: float
    max_grad_norm: float  # 0: no clipping
    seed: int
    # machine
    cpu: bool
    engine: str
    deepspeed_config: str
    precision: str
    gradient_checkpointing: bool
    local_rank: int  # set by launchers
    # which weights
    freeze: str
    train_only: str
    unfreeze_every: int  # optimizer steps; 0: all from the start
    layer_lr_decay: float
    lora_rank: int  # 0: all weights are trained
    lora_alpha: int  # 0: twice the rank
    lora_dropout: float
    lora_target_modules: str
    load_in_4bit: bool
    no_merge: bool
    # keeping
    save_dir: str
    save_interval: int  # optimizer steps; 0: at the end only
    save_total_limit: int  # checkpoints; 0: all
    load_dir: str
    ckpt_id: str
    resume: bool
    allow_world_size_change: bool
    verify_checkpoint: str
    verify_resume: int  # steps; 0: train
    output_dir: str
    # watching
    exam_limit: int  # questions a set; 0: all
    exam_orders: str
    report_to: str
    config: str
    dry_run: bool
    debug: bool


# fmt: off
def build_parser() -> Parser:
    """Build the parser of all flags, each with its unit, its scope and what 0 means."""
    parser = Parser(TRAINING, prog="fine_tuning_llm.py",
                        usage=f"{console.command('fine_tuning_llm.py')} [旗標]",
                        description="以考題、文字與對話訓練語言模型，並誠實評測")

    add = parser.add_argument_group("任務").add_argument
    add("--task", type=choice(*TASK_DEFAULTS), default="exam",
        help="exam：以選擇題訓練遮罩模型（預設）；mlm：以文字持續預訓練遮罩模型；classify：文字分類；"
             "tag：序列標註（命名實體、斷詞、詞性）；span：抽取式問答；"
             "seq2seq：文字轉換（T5、BART：摘要、改寫、翻譯）；"
             "cpt：以文字持續預訓練因果模型；sft：以問答微調因果模型（指令微調）")
    add("--objective", type=choice(*METHOD_OF_OBJECTIVE), default="answer+mlm",
        help="answer+mlm（預設）｜answer｜mlm｜cloze（比各選項本身的機率）｜choice（另裝選擇題輸出層）")
    add("--model_name_or_path", "--model", type=path, default="bert-base-chinese",
        help="底模：hub 上的名稱或資料夾（預設 %(default)s；cpt、sft 是 Qwen/Qwen2.5-0.5B，"
             "seq2seq 是 google/mt5-small）")
    add("--allow_pickle", action="store_true",
        help="底模沒有 safetensors 時，也讀 pytorch_model.bin（pickle）；只取張量，不執行夾帶的程式")
    add("--from_scratch", action="store_true", help="只用 config.json 建立隨機初始化的模型")
    add("--demo", action="store_true", help="內建示範：小模型、小題庫，不下載任何東西")

    add = parser.add_argument_group("資料").add_argument
    add("--dataset", type=path, default="ikala/tmmluplus",
        help="hub 名稱、資料夾、檔案（csv、tsv、json、jsonl、parquet、arrow、xlsx、txt）或題庫的簡稱"
             f"（{'｜'.join(NAMED)}）；預設 %(default)s")
    add("--revision", default="v1.1",
        help="hub 資料集的版本（預設依資料集：ikala/tmmluplus 是 %(default)s，"
             "cmmlu、ceval、mmlu、mmlu-pro 是固定的 commit，別的是 main）")
    add("--subjects", default="all", help="科目或類別，以逗號分開（預設 all）")
    add("--split_ratio", type=ratios, default=(0.70, 0.25, 0.05),
        help="訓練、驗證、保留的比例（預設 0.70,0.25,0.05；mlm、cpt、sft 是 0.95,0.05,0；"
             "classify、tag、span、seq2seq 是 0.8,0.1,0.1）")
    add("--pool", type=choice("fit", "all"), default="fit",
        help="fit：正式測驗題只用來評測（預設）；all：連它一起切，成績不可與公布的比較")
    add("--on_bad_rows", type=choice("fail", "skip"), default="fail",
        help="有問題的列：fail 全部列出並停止（預設）；skip 略過")
    add("--encoding",
        help="不是 UTF-8 的檔案用的編碼，例如 cp950（Big5）、gb18030（GBK）；不給就由內容判斷")
    add("--answers_from", type=choice("auto", "0", "1"), default="auto",
        help="整數答案裡，第一個選項是 0 還是 1；auto 看全部的列，看不出來就問（預設）")
    add("--max_length", type=int_in(16), default=512,
        help="一列最長幾個 token；太長的題目縮短題幹中段（預設 512；cpt、sft 是 2048）")
    add("--show_examples", type=int_in(0), default=0, help="印出幾個訓練樣本，也就是模型看到的樣子")

    add = parser.add_argument_group("遮住哪些字（mlm 與 exam）").add_argument
    add("--masking", type=choice(*MASKINGS, "answer"), default="answer",
        help="token 逐字；word 整詞（jieba；mlm 預設）；span 幾個連著的詞；"
             "answer 多半遮整個答案（exam 預設）")
    add("--mask_rate", type=float_in(0, 1, above=True), default=0.15,
        help="訓練時遮住的比例（預設 0.15；驗證一律 0.15）")
    add("--all_masked", action="store_true",
        help="遮住的一律換成 [MASK]；預設 80 %% 換、10 %% 換成別的 token、10 %% 不變")
    add("--preview_masks", type=int_in(0), default=0, help="只看幾列遮起來的樣子，不訓練")

    add = parser.add_argument_group("分類、標註、問答與文字轉換（classify、tag、span、seq2seq）").add_argument
    add("--text_column", default="",
        help="文字的欄位；classify 的句對寫兩個，例如 sentence1,sentence2；span 是文章，"
             "seq2seq 是輸入（預設自動辨識）")
    add("--label_column", default="",
        help="標籤的欄位；classify 寫幾個就是多標籤，各欄是 0 或 1；span 是答案，"
             "seq2seq 是輸出（預設自動辨識）")
    add("--multi_label", action="store_true", help="一列可有幾個標籤，以 |、;、、 或逗號分開")
    add("--class_weights", action="store_true", help="少見的類別在損失裡加重，依訓練資料的比例")
    add("--dataset_config_name", default="", help="hub 資料集有幾種設定時，用哪一種")

    add("--stride", type=int_in(0), default=128,
        help="tag、span：太長的文字分成幾段來讀，相鄰兩段重疊幾個 token（預設 128）")
    add("--max_answer_length", type=int_in(1), default=30, help="span：答案最長幾個 token（預設 30）")
    add("--prefix", default="", help="seq2seq：接在每個輸入前面的文字，例如 'summarize: '（預設沒有）")
    add("--max_target_length", type=int_in(1), default=128,
        help="seq2seq：輸出最長幾個 token（預設 128）")

    add = parser.add_argument_group("文字（cpt、mlm）").add_argument
    add("--clean", type=choices(*CLEANING), default=list(CLEANING),
        help=f"清理哪些，以逗號分開，或 all（預設）、none： {'、 '.join(CLEANING)}")
    add("--min_chars", type=int_in(0), default=100, help="少於幾個字的文章不用（預設 100）")
    add("--max_chars", type=int_in(1), default=2048, help="多於幾個字的文章在句尾切開（預設 2048；mlm 500）")
    add("--inspect", action="store_true", help="只看清理前後的樣子與數量，不訓練")

    add = parser.add_argument_group("問答（sft）").add_argument
    add("--template", type=choice("chat", "plain"), default="chat",
        help="chat：tokenizer 的對話樣板（預設）；plain：沒有樣板時寫成 User: …、Assistant: …")
    add("--train_on_prompt", action="store_true", help="提示也算進損失；預設只算回答")

    add = parser.add_argument_group("步數").add_argument
    add("--num_epochs", type=int_in(1), default=40,
        help="輪數上限（預設 40；mlm 10、classify、tag 5；span、seq2seq、sft 3；cpt 1）")
    add("--max_steps", type=int_in(0), default=0, help="最佳化步數；0 = 依 --num_epochs")
    add("--early_stopping_patience", type=int_in(0), default=5,
        help="驗證成績幾輪沒有進步就停；0 = 不停（預設 5；mlm 3；exam 與 mlm 以外 0）")
    add("--train_batch_size", type=int_in(1), default=32,
        help="批次大小：每一步的列數，所有 rank 合計（預設 32；cpt、sft、seq2seq 16）")
    add("--micro_batch_size", type=int_in(0), default=0,
        help="每個 rank 一次前向傳播的列數；0 = 自動（依長度，不超過一定的 token 數）；記憶體不足就減半")
    add("--auto_micro_batch", action="store_true",
        help="GPU 記憶體不足時自動把微批次減半，從最近的檢查點接續；批次大小不變")
    add("--learning_rate", type=float_in(0, above=True), default=3e-5,
        help="學習率的最高點（預設 3e-5；mlm 5e-5、cpt 2e-4、sft 1e-5；"
             "seq2seq 3e-4；隨機初始化 --from_scratch 是 0.128 除以寬度、最多 1e-3，--demo 是 1e-3）")
    add("--on_nan", type=choice("fail", "skip"), default="fail",
        help="損失是 NaN 或無限大時：fail 停止並列出是哪些列（預設）；skip 略過那一步")
    add("--warmup_ratio", type=float_in(0, 1), default=0.1, help="暖身佔總步數的比例（預設 0.1）")
    add("--weight_decay", type=float_in(0), default=0.01, help="權重衰減（預設 0.01）")
    add("--max_grad_norm", type=float_in(0), default=1.0, help="梯度範數的上限；0 = 不裁剪（預設 1.0）")
    add("--seed", type=int_in(0), default=42, help="亂數種子（預設 42）")

    add = parser.add_argument_group("機器").add_argument
    add("--cpu", action="store_true", help="不用 GPU")
    add("--engine", type=choice("auto", "deepspeed", "torch"), default="auto",
        help="auto：有 GPU 或由 deepspeed 啟動就用 DeepSpeed")
    add("--deepspeed_config", type=path, default=DEFAULT_DEEPSPEED_CONFIG,
        help="DeepSpeed 設定檔（預設 %(default)s）")
    add("--precision", type=choice("auto", "fp32", "bf16", "fp16"), default="auto",
        help="auto：算 bf16 較快的 CPU 與 GPU 用 bf16，較舊的 GPU 用 fp16，其餘 fp32")
    add("--gradient_checkpointing", action="store_true", help="以時間換記憶體")
    add("--local_rank", type=int_in(-1), default=-1, help="由啟動器填入")

    add = parser.add_argument_group("調整哪些權重").add_argument
    add("--freeze", default="",
        help="凍結的部分：embeddings、層號、head，例如 embeddings,0-9，或 all_but_head")
    add("--train_only", default="", help="只訓練的部分，例如 11,head")
    add("--unfreeze_every", type=int_in(0), default=0,
        help="由上而下，每幾步多解凍一部分；0 = 一開始就訓練全部（預設）")
    add("--layer_lr_decay", type=float_in(0, 1, above=True), default=1.0,
        help="每往下一層學習率乘上多少，例如 0.9（預設 1，各層相同）")
    add("--lora_rank", type=int_in(0), default=0, help="LoRA 的 rank；0 = 訓練全部權重（預設）")
    add("--lora_alpha", type=float_in(0), default=0, help="LoRA 的 alpha；0 = rank 的兩倍（預設）")
    add("--lora_dropout", type=float_in(0, 0.99), default=0.05, help="LoRA 的 dropout（預設 0.05）")
    add("--lora_target_modules", default="auto",
        help="加在哪些線性層，以逗號分開；auto = 輸出層以外的全部（預設）")
    add("--load_in_4bit", action="store_true", help="底模以 4 位元載入（QLoRA；要有 bitsandbytes）")
    add("--no_merge", action="store_true", help="只存 LoRA 的權重，不合併進底模")

    add = parser.add_argument_group("保存").add_argument
    add("--save_dir", type=path, default="./checkpoints", help="檢查點的資料夾（預設 %(default)s）")
    add("--save_interval", type=int_in(0), default=100,
        help="每幾步存一個檢查點；0 = 只在結束時存（預設 100）")
    add("--save_total_limit", type=int_in(0), default=2, help="留下幾個檢查點；0 = 全部（預設 2）")
    add("--load_dir", type=path, default="",
        help="從這個資料夾的檢查點接續")
    add("--ckpt_id", type=path, default="", help="接續哪一個檢查點，例如 step100（預設最新的）")
    add("--resume", action="store_true", help="接續 --save_dir 中最新的檢查點；沒有就從頭開始")
    add("--allow_world_size_change", action="store_true",
        help="接續別的 rank 數寫的檢查點；dropout 的隨機結果不同，不再逐位元相同")
    add("--verify_checkpoint", type=path, default="",
        help="只檢查一個檢查點、--save_dir 或模型資料夾是否完好，不訓練")
    add("--verify_resume", type=int_in(0), default=0,
        help="只檢查接續：一次跑 N 步，再中斷一次跑 N 步，比較是否逐位元相同；什麼都不留下")
    add("--output_dir", type=path, default=console.MODEL_FOLDER,
        help="模型的資料夾；曲線、紀錄、報告寫在它旁邊（預設 %(default)s）")

    add = parser.add_argument_group("觀察與記錄").add_argument
    add("--exam_limit", type=int_in(0), default=0,
        help="訓練後每份題庫最多評測幾題（固定抽樣）；0 = 全部（預設；seq2seq 要一字一字寫，預設 200 列）")
    add("--exam_orders", type=choice(*ORDERS), default="1",
        help="letter 作答的選項順序：1 照原順序，與公布成績的做法相同（預設）；cyclic 輪換取平均")
    add("--report_to", type=choice("none", *TRACKERS), default="none",
        help="另外記錄到哪個追蹤工具（預設 none）")
    add("--config", type=path, default="", help="YAML 檔，內容是 旗標: 值；命令列上的旗標優先")
    add("--dry_run", action="store_true", help="讀資料、算步數、印出設定，不訓練")
    add("--debug", action="store_true", help="出錯時顯示完整經過")
    return parser
# fmt: on


def parse_args(argv: list[str]) -> tuple[TrainArgs, frozenset[str]]:
    """Parse the command line.

    Returns:
        the values, and the names of the flags that were given.

    Raises:
        UserError: with every problem of the flags.
    """
    parser = build_parser()
    args = TrainArgs(**vars(parser.read(argv)))
    defaults: dict[str, object] = {**TASK_DEFAULTS[args.task], **(DEMO_DEFAULTS if args.demo else {})}
    if args.from_scratch and not args.demo:
        defaults["learning_rate"] = None  # by the width of the model, see training/learning_rate.py
    for name, value in defaults.items():
        if name not in parser.given:
            setattr(args, name, value)
    choose_encoding(args.encoding)
    reset_log_once()
    if "revision" not in parser.given:
        args.revision = default_revision(args.dataset)
    return args, frozenset(parser.given)
