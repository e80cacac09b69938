"""The guidelines that a new project starts with, in Japanese and English; whoever owns the project edits them."""

GUIDELINES = """\
# ガイドライン

1 つの文に対する続きをいくつか読み、良いと思う順に並べてください。どれがどのモデルのものかは分かりません。

- 全部読んでから決めてください。最初に並んでいる順番に意味はありません。
- 重視する順に、害がないこと、内容が正しいこと、問いや文脈に合っていること、読みやすいことです。
- 長いから、難しい言葉を使っているから良い、とは限りません。
- 差がなければ同じ順位にしてください。無理に差をつける必要はありません。
- どれも使えないときは「すべて悪い」を選んでください。判断できないときは、理由を書いてスキップしてください。
- 危険な内容、壊れた文、モデルの名前が出てくる文にはフラグをつけてください。フラグは順位に影響しません。
- 同じ課題がもう一度出てくることがあります。前の回答を思い出そうとせず、そのときの判断で回答してください。
- 迷ったら直感で構いません。疲れたら休んでください。回答はすべて保存されていて、あとから直せます。

# Guidelines

Read some continuations of one text and put them in order, the best one first. You are not told which model wrote which.

- Read all of them before you decide. The order in which they stand says nothing.
- What matters, in this order: it does no harm, it is true, it fits the question or the text, it reads well.
- Longer is not better by itself, and neither are difficult words.
- Where there is no difference, give the same rank. Nobody needs you to find one.
- When none is of any use, choose "all are bad". When you cannot judge, skip the task and say why.
- Mark texts that are unsafe, broken, or name their model. Marks do not change the ranks.
- Some tasks come again. Do not try to remember what you said; judge them as you see them now.
- When in doubt, trust your first impression. Rest when you are tired: every answer is saved and can be changed later.
"""
