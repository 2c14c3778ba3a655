"""Parser of the flags of inference.py: each with its unit, its scope and what 0 means."""

from __future__ import annotations

from finetune.cli.flag_types import (
    choice,
    comma_list,
    float_in,
    int_in,
    key_value,
    path,
    stop_string,
    true_or_false,
)
from finetune.cli.inference_args import LONGEST_WORD, MOST_WORDS, POOLINGS
from finetune.cli.inference_synonyms import USING
from finetune.cli.parser import Parser
from finetune.data.exam import SPLITS
from finetune.data.known_exams import NAMED
from finetune.prompts.protocol import OURS, PROTOCOLS
from finetune.prompts.scoring_methods import GENERATE, LOGLIKELIHOOD, METHODS, ORDERS, SHORT
from finetune.runtime import console


# fmt: off
def build_parser() -> Parser:
    """Build the parser of all flags, each with its unit, its scope and what 0 means."""
    parser = Parser(USING, prog="inference.py", usage=f"{console.command('inference.py')} [旗標]",
                        description="填空、對話、答選擇題、分類、標註、文章問答、文字轉換、向量、處理整個檔案、評測、"
                                    "檢查題庫；都不給就在終端機對話")

    add = parser.add_argument_group("模型").add_argument
    add("--model_path", type=path, default=console.MODEL_FOLDER,
        help="模型資料夾或 hub 上的名稱（預設 %(default)s）")
    add("--allow_pickle", action="store_true",
        help="沒有 safetensors 時，也讀 pytorch_model.bin（pickle）；只取張量，不執行夾帶的程式")
    add("--cpu", action="store_true", help="不用 GPU")
    add("--precision", type=choice("auto", "fp32", "bf16", "fp16"), default="auto",
        help="auto｜fp32｜bf16｜fp16；auto 是 fp32，或在算 bf16 較快的 CPU 用 bf16，分數太接近的題再用 fp32")
    add("--local_rank", type=int_in(-1), default=-1, help="由啟動器填入")

    add = parser.add_argument_group("填空、分類與標註").add_argument
    add("--prompt", help="一句話，[MASK] 是空格，沒有就加在句尾；因果模型則回答它，或續寫；"
                         "分類、標註、文字轉換的模型則處理它")
    add("--pair", help="分類模型：一對句子的第二句，第一句是 --prompt")
    add("--top_k", type=int_in(0, MOST_WORDS), default=5,
        help=f"列出前幾名（1 到 {MOST_WORDS}，預設 5；分類的 JSON 與檔案預設全部標籤）；"
             "因果模型從最可能的幾個裡抽樣（預設 50，0 = 全部）")
    add("--word_length", type=int_in(1, LONGEST_WORD), default=1,
        help="一個 [MASK] 最多變成幾個字（1 到 4，預設 1）；多個 [MASK] 則一起填")
    add("--candidates", type=comma_list, help="只從這些詞裡挑，例如 好,晴朗,下雨")

    add = parser.add_argument_group("文字生成（因果模型、文字轉換模型）").add_argument
    add("--max_new_tokens", type=int_in(1), default=256,
        help="最多生成幾個 token（預設 256；文字轉換照訓練時的 --max_target_length）")
    add("--do_sample", action="store_true", help="抽樣；不加就每次選最可能的（greedy）")
    add("--temperature", type=float_in(0), default=1.0, help="抽樣的溫度；0 = greedy（預設 1）")
    add("--top_p", type=float_in(0, 1, above=True), default=1.0, help="只從合計這麼多機率的字裡抽（預設 1）")
    add("--repetition_penalty", type=float_in(0, above=True), default=1.0,
        help="大於 1 就少重複（預設 1）")
    add("--num_beams", type=int_in(1), default=1, help="束搜尋的寬度；1 = 不用（預設 1）")
    add("--length_penalty", type=float_in(-10, 10), default=1.0,
        help="束搜尋的長度獎懲：大於 0 偏好長的（預設 1）")
    add("--early_stopping", action="store_true", help="束搜尋湊滿 --num_beams 個完整的答案就停")
    add("--seed", type=int_in(0), default=None, help="抽樣的亂數種子；不給就每次不同")
    add("--min_p", type=float_in(0, 1), default=0.0,
        help="只從機率不低於最可能者這個比例的字裡抽，例如 0.05；0 = 不用（預設）")
    add("--min_new_tokens", type=int_in(0), default=0,
        help="至少生成幾個 token 才可以結束（預設 0）；--stop 的字串照樣結束")
    add("--no_repeat_ngram_size", type=int_in(0), default=0,
        help="連續這麼多個 token 不重複出現，提示裡的也算；0 = 不用（預設）")
    add("--stop", type=stop_string, nargs="+", default=[], metavar="TEXT",
        help="生成到這些字串之一就停，不含它；\\n 是換行，例如 --stop 。 \\n")
    add("--system_prompt", default=None, help="放在對話最前面的系統提示（--prompt、對話、檔案、評測）")

    add = parser.add_argument_group("選擇題與文章問答").add_argument
    add("--question", help="題目；選擇題加 --options，問一篇文章加 --context")
    add("--context", help="抽取式問答模型：--question 問的文章，答案是其中的一段")
    add("--max_answer_length", type=int_in(1), default=30,
        help="抽取式問答：答案最長幾個 token（預設照訓練時的，沒有就是 30）")
    add("--options", help='選項，例如 "A:地球 B:木星 C:火星"')
    add("--scoring", type=choice("auto", *METHODS, *SHORT, LOGLIKELIHOOD, GENERATE), default="auto",
        metavar="SCORING",
        help="auto：照模型訓練的方式，沒有記載就用 pll；letter｜joint｜pll｜pll_l2r｜pll_word_l2r｜first，"
             "加 _sum 是總和，加 +pmi、+prior 是校正（pmi、prior 是簡寫）；"
             "因果模型：letter（預設）、prior、loglikelihood（同 lm-eval）、generate（寫出答案）")
    add("--orders", type=choice(*ORDERS), default="cyclic",
        help="letter 用：1 照原順序；cyclic 輪換順序取平均（預設）；all 全部順序；+prior 預設 1，"
             "因為輪換後先驗自己就抵消了")

    add = parser.add_argument_group("整個檔案").add_argument
    add("--input", type=path, help="題目檔（question、A、B…）、句子檔（prompt）、要分類、標註或轉換的文字檔，"
                        "或文章與問題的檔："
                        "csv、tsv、json、jsonl、parquet、arrow、xlsx、txt")
    add("--text_column", default="",
        help="分類、標註、文字轉換、--embed：文字的欄位；句對寫兩個，例如 sentence1,sentence2；"
             "文章問答是文章的欄位（預設照訓練時的，沒有就自動辨識）")
    add("--label_column", default="",
        help="正解的欄位，--input 與 --exam 用來算成績，--inspect 看標籤（預設自動辨識）")
    add("--output", type=path, help="答案檔，一列一筆；中斷後同一個指令會接著做")
    add("--overwrite", action="store_true", help="答案檔已經存在時，重新作答並換掉它")
    add("--strict", action="store_true", help="有任何一列答不了就以 2 結束")

    add = parser.add_argument_group("向量與圖").add_argument
    add("--embed", type=path, metavar="FILE",
        help="把檔案的每一列變成一個向量，寫到 --output（.parquet 或 .npy）；任何一種模型都可以")
    add("--pooling", type=choice("auto", *POOLINGS), default="auto",
        help="向量怎麼由各個 token 得來；auto 照模型附的設定，沒有就用 mean（預設）")
    add("--nearest", metavar="TEXT", help="列出 --embed 的檔案裡最接近這段文字的列（--top_k 列）")
    add("--hidden_states", action="store_true",
        help="--prompt 的 last_hidden_state：形狀，與每個 token 的向量")
    add("--draw", type=path, metavar="FOLDER",
        help="畫出模型的五張圖（SVG）：BERT、GPT、各家並列、哪些層在學、遷移學習的流程")

    add = parser.add_argument_group("評測").add_argument
    add("--exam", type=path,
        help=f"題庫：hub 名稱、資料夾、檔案、簡稱（{'｜'.join(NAMED)}），或 demo（內建示範）；"
             "分類、標註、文章問答、文字轉換的模型則是有正解的檔案或資料夾")
    add("--split", type=choice(*sorted(SPLITS), "all"), default="test", help="評測哪一部分（預設 test）")
    add("--report", type=path, help="報告寫到這個資料夾（預設 ./report_{題庫}）")
    add("--subjects", default="all", help="科目或類別，以逗號分開（預設 all）")
    add("--revision", default="v1.1",
        help="hub 資料集的版本（預設依題庫：ikala/tmmluplus 是 %(default)s，"
             "cmmlu、ceval、mmlu、mmlu-pro 是固定的 commit，別的是 main）")
    add("--compare_with", type=path,
        help="同一份題目再評測另一個模型：資料夾、hub 名稱，或 base（微調前的底模）")
    add("--exam_limit", type=int_in(0), default=0, help="最多評測幾題（固定抽樣）；0 = 全部")
    add("--skip_option_only", action="store_true", help="不測「只看選項」的基準，省一半時間")
    add("--on_bad_rows", type=choice("fail", "skip"), default="fail",
        help="有問題的列：fail 全部列出並停止（預設）；skip 略過")
    add("--encoding",
        help="讀的檔案不是 UTF-8 時用的編碼，例如 cp950（Big5）、gb18030（GBK）；不給就由內容判斷")
    add("--answers_from", type=choice("auto", "0", "1"), default="auto",
        help="整數答案裡，第一個選項是 0 還是 1；auto 看全部的列，看不出來就問（預設）")

    add = parser.add_argument_group("評測的問法").add_argument
    add("--protocol", default=OURS, metavar="PROTOCOL",
        help=f"問法：{'｜'.join(PROTOCOLS)}，或自己的 FILE.yaml（預設 {OURS}）；成績與公布的比較時選同一種")
    add("--num_fewshot", type=int_in(0, 100), default=None,
        help="先給幾題示範：該科 dev 的前幾題（預設依 --protocol，多半是 0）")
    add("--prompt_format", type=choice("auto", "chat", "raw"), default="auto",
        help="chat 用對話樣板，raw 直接接在文字後面；auto 依 --protocol 與模型（預設）")
    add("--fewshot_as_multiturn", type=true_or_false, nargs="?", const=True, metavar="true|false",
        help="chat：示範寫成一來一往的對話，不寫在同一句裡（預設依 --protocol）")
    add("--chat_template_kwargs", type=key_value, nargs="+", default=[], metavar="KEY=VALUE",
        help="給對話樣板的參數，例如 enable_thinking=false")
    add("--log_prompts", action="store_true", help="predictions.jsonl 也寫下每一題的提示")
    add("--repeat", type=int_in(1, 100), default=None,
        help="評測幾次，第二次起以固定的種子打亂選項，報告平均與標準差（預設 1）")
    add("--audit_keys", action="store_true",
        help="列出答案可能有誤的題目：幾個模型或幾種選項順序的票，有把握地選了同一個別的選項")

    add = parser.add_argument_group("比較").add_argument
    add("--compare", type=path, nargs="+", default=None, metavar="FILE",
        help="比較兩份逐題的作答，不必載入模型：predictions.jsonl，或 lm-eval、Twinkle 的檔案或資料夾；"
             "依題目內容對應，成對檢定（--report 寫下網頁與每一題）")
    add("--revisions", nargs="+", default=None, metavar="REVISION",
        help="題庫的兩個版本，例如 v1.0 v1.1：依內容對應，哪些題沒變、改了答案、不見了；只評測共有的題目")

    add = parser.add_argument_group("伺服器（--model_path http://主機:埠/v1）").add_argument
    add("--served_model", default="",
        help="伺服器上的模型名稱；只有一個時可以不給。金鑰放在環境變數 OPENAI_API_KEY。"
             "--serve：別人用什麼名稱呼叫（預設資料夾的名稱）")
    add("--concurrency", type=int_in(1, 512), default=8, help="同時送出幾個請求（預設 8）")
    add("--request_timeout", type=float_in(0, above=True), default=600.0,
        help="一個請求最多等幾秒（預設 600）；--serve 也是")

    add = parser.add_argument_group("提供服務").add_argument
    add("--serve", action="store_true",
        help="開伺服器：網頁、API（也有 OpenAI 格式的）與指標；先 pip install -r requirements-serve.txt")
    add("--host", default="127.0.0.1",
        help="在哪個位址聽（預設 %(default)s，只有這台機器連得到）；別的位址一定要有 --api_key")
    add("--port", type=int_in(0, 65535), default=8000, help="連接埠（預設 8000；0 = 自動找一個沒人用的）")
    add("--api_key", default=None, metavar="env:NAME|FILE",
        help="金鑰放在哪裡：環境變數 env:NAME，或檔案（一行一把）；不要把金鑰本身寫在指令裡，用 ps 就看得到")
    add("--cors_origin", nargs="+", default=[], metavar="ORIGIN",
        help="允許哪些網站的網頁呼叫，例如 https://example.edu.tw（預設都不允許）")
    add("--max_queue", type=int_in(1, 100_000), default=256,
        help="還沒答完的請求最多幾個，再多就回 429（預設 256）")
    add("--log_texts", action="store_true", help="紀錄裡也寫下請求與答案的文字（預設不寫）")
    add("--watch", type=path, metavar="FILE.jsonl",
        help="把每個請求的特徵（長度、[UNK] 比例、信心、答案、時間，不含文字）記到這個檔案後面")
    add("--drift", type=path, metavar="FILE.jsonl",
        help="--watch 的檔案與訓練時的驗證資料差多少；超過 --drift_bound，結束碼是 3（--report 寫成網頁）")
    add("--drift_reference", type=path, metavar="FILE.jsonl",
        help="改和這個 --watch 的檔案比（例如上個月的），不和驗證資料比；模型沒有 run card 也能用")
    add("--drift_bound", type=float_in(0, 1), default=0.1,
        help="分布相差多少算漂移：信賴區間的下界要超過它（預設 0.1）")

    add = parser.add_argument_group("檢查題庫").add_argument
    add("--inspect", type=path,
        help="題庫：列數、科目、答案分布、重複、可疑的列；給 --model_path 再看 [UNK] 與長度。"
             "有標籤或標註的文字、文章與問答、成對的文字：標籤、長度、重複、矛盾")
    add("--max_length", type=int_in(16), default=512, help="檢查長度時，一題最長幾個 token（預設 512）")

    add = parser.add_argument_group("輸出").add_argument
    add("--json", action="store_true", help="結果以 JSON 輸出，一行一個物件")
    add("--answer_format", type=choice("letter", "index"), default="letter",
        help="答案：letter（A、B…）或 index（起算方式同檔案裡的答案；選項1… 從 1，看不出來就從 0）")
    add("--batch_size", type=int_in(0), default=0, help="檔案一次讀幾列；0 = 自動")
    add("--debug", action="store_true", help="出錯時顯示完整經過")
    return parser
# fmt: on
