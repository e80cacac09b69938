"""Errors of the labelling verbs in Japanese. The English message, with names and places in it, follows on the next line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from konomi.report.advice import locale

WORDS = Path(__file__).parents[1] / "web" / "locales"
"""The pages' texts, which have the errors of people's requests."""
SENTENCES = (
    # files of candidates
    ("no rows in it", "ファイルに課題がありません。konomi sample で候補のファイルを作ってください。"),
    ("no tasks: there is nothing to label", "課題がありません。konomi sample で候補のファイルを作ってください。"),
    ("fewer than two candidates", "候補が 2 つに満たない課題があります。候補を増やすか、その課題を除いてください。"),
    ("at least two are needed to compare", "候補が 2 つに満たない課題があります。候補を増やすか、その課題を除いてください。"),
    ("are the same text", "同じ候補が 2 つある課題があります。どちらかを除いてください。"),
    ("the same prompt and candidates as", "同じ課題が 2 つあります。どちらかを除いてください。"),
    ("fewer than two different texts", "どの課題にも、異なる候補が 2 つありません。候補を作り直してください。"),
    ("can be ranked at once", "一度に順位を付けられる数より候補が多い課題があります。課題を分けてください。"),
    ("not UTF-8 text", "UTF-8 の文字として読めません。UTF-8 で保存し直してください。"),
    ("JSON that cannot be read", "JSON として読めない行があります。その行を直してください。"),
    ("not JSON:", "JSON として読めません。書き直してください。"),
    ("no column ", "必要な列がありません。列の名前を確かめてください。"),
    ("are those of no known format", "列の名前がどの形式にも合いません。konomi sample が作ったファイルを渡してください。"),
    ("file ending is not one that is read", "この種類のファイルは読めません。.jsonl、.csv、.parquet のどれかにしてください。"),
    # projects and their stores
    (
        "no project yet; --candidates FILE makes one",
        "プロジェクトがまだありません。--candidates で候補のファイルを渡すと作られます。",
    ),
    (
        "konomi label PROJECT --candidates FILE makes a project",
        "プロジェクトがありません。場所を確かめるか、konomi label で作ってください。",
    ),
    ("already exists", "その名前のものはすでに存在します。上書きはしません。別の名前にするか、先に移してください。"),
    (
        "damaged, or not a database",
        "回答を保存しているファイルが壊れています。バックアップがあれば置き換えてください。なければ下のコマンドで取り出せます。",
    ),
    ("not a store of labels", "回答を保存したファイルではありません。正しいプロジェクトを指定してください。"),
    ("update konomi", "新しいバージョンの konomi が書いたファイルです。konomi を更新してください。"),
    ("has kept it locked", "ほかのプログラムがファイルを使い続けています。それを終えてから、もう一度お試しください。"),
    ("unknown key", "設定に不明な項目があります。次の行に示す名前を修正してください。"),
    ("nobody has answered anything yet", "まだ誰も回答していないので、書き出すものがありません。"),
    ("nobody has put two texts in order yet", "まだ誰も順位を付けていません。ページをもう一度開いてください。"),
    # before and after
    ("there is no before/after yet", "学習前後の比較がまだありません。下のコマンドで作れます。"),
    ("there is nothing to compare blind", "学習の前後で文が変わった書き出しがないため、比較できません。"),
    # the page's address
    (
        "add --allow-network",
        "ほかのマシンからページを開けるようになり、通信は暗号化されません。それでよければ --allow-network を付けてください。",
    ),
    ("no such host", "そのアドレスは見つかりません。このマシンだけで使う場合は 127.0.0.1 にしてください。"),
    ("leave --port out", "そのポートは使えません。--port を付けないか、別の番号にしてください。"),
    # whatever it is
    ("no such directory", "そのディレクトリはありません。場所と名前を確かめてください。"),
    ("no such file", "ファイルが見つかりません。場所と名前を確かめてください。"),
    ("cannot be made", "作れませんでした。場所、空き容量、書き込みの許可を確かめてください。"),
    ("cannot be read", "読めませんでした。場所と読み取りの許可を確かめてください。"),
    ("may the file be written", "ファイルを読み書きできません。空き容量と書き込みの許可を確かめてください。"),
)
"""A part of a message -> what it is about and how to mend it. The first that fits is taken."""


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the terminal's language is Japanese.

    >>> is_wanted({"LC_ALL": "", "LANG": "ja_JP.UTF-8"}), is_wanted({"LC_ALL": "C", "LANG": "ja_JP.UTF-8"})
    (True, False)
    """
    names = (environment.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return next((name for name in names if name), "").split("_")[0].lower() == "ja"


def sentence_of(error: Exception) -> str | None:
    """What an error is about, if there are words for it.

    >>> from konomi.errors import DataError
    >>> sentence_of(DataError("c.jsonl: no rows in it"))
    'ファイルに課題がありません。konomi sample で候補のファイルを作ってください。'
    """
    code = getattr(error, "code", None)
    if code is not None:  # what is refused to people has its words in the page's catalogue
        return locale("errors", WORDS)["ja"].get(f"error_{code}")
    return next((sentence for part, sentence in SENTENCES if part in str(error)), None)
