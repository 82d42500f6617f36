"""Training problems that a benchmark holds too, in scripts with and without spaces between words."""

import re
import time
import unicodedata

import pytest

from ngrpo.data.contamination import BenchmarkProblems
from ngrpo.data.problem import Problem

WORDS = 13
FULL_WIDTH = {code: code + 0xFEE0 for code in range(ord("!"), ord("~") + 1)}

# By language: a problem of a benchmark, the same problem told again, and another problem that begins or ends alike.
TOLD_AGAIN = {
    "Chinese": (
        "小明有5个苹果,他又买了3个苹果,然后把其中的2个送给了妹妹,请问小明现在一共有多少个苹果?",
        "【例题】请认真作答:小明有5个苹果,他又买了3个苹果,然后把其中的2个送给了妹妹。问小明还剩几个?",
        "小红有9本书,她又借了4本书,然后把其中的一半还给了图书馆,请问小红现在一共有多少本书?",
    ),
    "Chinese with LaTeX": (
        r"已知函数 $f(x)=x^{2}-4x+7$ 在区间 $[0,3]$ 上的最大值为 $M$,最小值为 $m$,求 $M-m$ 的值。",
        r"设\(f(x)=x^2-4x+7\).已知函数 $f\left(x\right)=x^2-4x+7$ 在区间$[0,3]$上的最大值为$M$,最小值为$m$,则 M-m 等于多少",
        r"已知函数 $f(x)=x^{2}-6x+1$ 在区间 $[1,8]$ 上的最大值为 $a$,试求 $a$ 的平方。",
    ),
    "Japanese": (
        "太郎さんはりんごを5個持っています。お店でさらに3個買い、妹に2個あげました。太郎さんは今りんごを何個持っていますか。",
        "次の問題を解きなさい。太郎さんはりんごを5個持っています。お店でさらに3個買い、妹に2個あげました。残りは何個でしょう。",
        "花子さんはみかんを8個持っています。お店でさらに6個もらい、弟に4個わたしました。花子さんは今みかんを何個持っていますか。",
    ),
    "Thai": (
        "สมชายมีแอปเปิล 5 ผล เขาซื้อเพิ่มอีก 3 ผล แล้วให้น้องสาวไป 2 ผล ตอนนี้สมชายมีแอปเปิลทั้งหมดกี่ผล",
        "จงแสดงวิธีทำ: สมชายมีแอปเปิล 5 ผล เขาซื้อเพิ่มอีก 3 ผล แล้วให้น้องสาวไป 2 ผล สมชายเหลือกี่ผล",
        "มานีมีดินสอ 9 แท่ง เธอซื้อเพิ่มอีก 4 แท่ง แล้วให้เพื่อนไปครึ่งหนึ่ง ตอนนี้มานีมีดินสอทั้งหมดกี่แท่ง",
    ),
    "Khmer": (
        "សុខមានផ្លែប៉ោម៥ផ្លែ គាត់ទិញបន្ថែម៣ផ្លែទៀត ហើយឱ្យប្អូនស្រីរបស់គាត់២ផ្លែ តើឥឡូវនេះសុខមានផ្លែប៉ោមប៉ុន្មានផ្លែ",
        "ចូរគណនា៖ សុខមានផ្លែប៉ោម៥ផ្លែ គាត់ទិញបន្ថែម៣ផ្លែទៀត ហើយឱ្យប្អូនស្រីរបស់គាត់២ផ្លែ នៅសល់ប៉ុន្មាន",
        "ធីតាមានសៀវភៅ៩ក្បាល នាងខ្ចី៤ក្បាលទៀត រួចប្រគល់ពាក់កណ្តាលទៅបណ្ណាល័យវិញ តើធីតាមានសៀវភៅប៉ុន្មានក្បាល",
    ),
    "Lao": (
        "ສົມມີໝາກແອັບເປີ້ນ 5 ໜ່ວຍ ລາວຊື້ເພີ່ມອີກ 3 ໜ່ວຍ ແລ້ວໃຫ້ນ້ອງສາວໄປ 2 ໜ່ວຍ ຕອນນີ້ສົມມີໝາກແອັບເປີ້ນທັງໝົດຈັກໜ່ວຍ",
        "ຈົ່ງຄິດໄລ່: ສົມມີໝາກແອັບເປີ້ນ 5 ໜ່ວຍ ລາວຊື້ເພີ່ມອີກ 3 ໜ່ວຍ ແລ້ວໃຫ້ນ້ອງສາວໄປ 2 ໜ່ວຍ ຍັງເຫຼືອຈັກໜ່ວຍ",
        "ຄຳມີປຶ້ມ 9 ຫົວ ນາງຢືມອີກ 4 ຫົວ ແລ້ວສົ່ງຄືນຫໍສະໝຸດເຄິ່ງໜຶ່ງ ຕອນນີ້ຄຳມີປຶ້ມທັງໝົດຈັກຫົວ",
    ),
    "Burmese": (
        "မောင်မောင်တွင် ပန်းသီး ၅ လုံးရှိသည်။ သူသည် နောက်ထပ် ၃ လုံးဝယ်ပြီး ညီမလေးကို ၂ လုံးပေးလိုက်သည်။ ယခု ဘယ်နှစ်လုံးရှိသနည်း။",
        "တွက်ပါ။ မောင်မောင်တွင် ပန်းသီး ၅ လုံးရှိသည်။ သူသည် နောက်ထပ် ၃ လုံးဝယ်ပြီး ညီမလေးကို ၂ လုံးပေးလိုက်သည်။ ကျန်သည်ကိုရှာပါ။",
        "လှလှတွင် စာအုပ် ၉ အုပ်ရှိသည်။ သူမသည် ၄ အုပ်ငှားပြီး တစ်ဝက်ကို စာကြည့်တိုက်သို့ ပြန်အပ်သည်။ ယခု ဘယ်နှစ်အုပ်ရှိသနည်း။",
    ),
    "Chinese and English": (
        "在平面直角坐标系中,点 P 到 the origin 的距离是 13,求 the sum of coordinates 的最大整数值",
        "(AMC) 在平面直角坐标系中,点P到the origin的距离是13,求the sum of coordinates的最大整数值,要求写过程",
        "在平面直角坐标系中,点 Q 到 the x-axis 的距离是 7,求 the area of triangle 的最小整数值",
    ),
}


def measured(*texts: str, words: int = WORDS) -> BenchmarkProblems:
    problems = BenchmarkProblems(words)
    problems.add("math", [Problem(f"math-{i}", text, "1") for i, text in enumerate(texts)])
    return problems


@pytest.mark.parametrize("language", TOLD_AGAIN)
def test_a_problem_told_again_is_found_and_another_of_its_kind_is_not(language):
    problem, again, other = TOLD_AGAIN[language]
    found = measured(problem)
    match = found.match(again)
    assert match is not None
    assert (match.benchmark, match.problem) == ("math", "math-0")
    assert re.fullmatch(r"\d+ words and characters|13 words", match.how)
    assert found.match(other) is None


@pytest.mark.parametrize("language", TOLD_AGAIN)
@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_the_form_of_the_characters_and_the_spaces_between_them_do_not_matter(language, form):
    problem, again, _ = TOLD_AGAIN[language]
    found = measured(unicodedata.normalize(form, problem))
    assert found.match(again) is not None
    dense = language.startswith(("Chinese", "Japanese")) and "English" not in language
    for gap in (" ", "\n", "\u200b") if dense else ():
        assert found.match(gap.join(again.replace("\\left", "").replace("\\right", ""))) is not None


def test_half_and_full_width_are_one():
    problem = "ある店でリンゴを5個とミカンを12個買ったとき、代金の合計は1500円であった。リンゴの値段を求めよ。"
    wide = problem.translate(FULL_WIDTH)
    # Written as numbers: an editor that composes characters would make these the usual ones.
    half = problem.replace("リンゴ", "\uff98\uff9d\uff7a\uff9e").replace("ミカン", "\uff90\uff76\uff9d")
    for text in (wide, half):
        assert text != problem
        assert measured(problem).match(f"問い{text}ただし税を除く") is not None
        assert measured(text).match(f"問い{problem}ただし税を除く") is not None


def test_half_and_full_width_are_one_where_the_whole_text_is_compared():
    problem = "Find 3 of 8."
    wide = problem.translate(FULL_WIDTH)
    assert wide != problem
    assert measured(problem).match(wide).how == measured(wide).match(problem).how == "text"


def test_a_run_that_a_problem_holds_twice_is_its_own():
    phrase = "a train leaves the old station at nine and reaches the coast by noon"
    found = measured(f"When {phrase}, how far is it? When {phrase}, how fast is it?")
    assert len(phrase.split()) > WORDS
    assert found.match(f"Suppose that {phrase} on Monday.") is not None


def test_a_phrase_that_several_problems_share_proves_nothing():
    phrase = "其中m和n是互质的正整数,请求出m加n的值并写出完整的解答过程"
    found = measured(f"甲数除以乙数等于m/n,{phrase}", f"抛三次硬币的概率是m/n,{phrase}")
    assert found.match(f"圆与方的面积合计m/n,{phrase}") is None


def test_fewer_characters_than_a_run_are_compared_as_a_whole():
    found = measured("求1加到100的和。")
    assert found.match("求 1 加到 100 的和。").how == "text"
    assert found.match("先求1加到100的和再开方") is None


def old_runs(text: str, words: int) -> list[tuple[str, ...]]:
    plain = unicodedata.normalize("NFKC", re.sub(r"\\[A-Za-z]+", " ", text)).casefold()
    found = re.findall(r"[^\W_]+", plain)
    return list(zip(*(found[start:] for start in range(words)), strict=False))


@pytest.mark.parametrize(
    "text",
    [
        r"Let $\frac{a_1}{b^2} = 3.5$; find the number of ordered pairs (m, n), where m and n are relatively prime, 10,000 ≤ x_1!",
        "Пусть числа a и b таковы, что сумма их квадратов равна 25, а произведение 12. Найдите большее из них.",
        "한 변의 길이가 5인 정사각형 안에 반지름이 2인 원을 그릴 때 남는 부분의 넓이를 구하시오. 단 원주율은 3으로 한다.",
        "किसी संख्या का दोगुना उसके तिगुने से 7 कम है तो वह संख्या ज्ञात कीजिए और उत्तर की जाँच भी कीजिए",
        "أوجد مجموع الأعداد الصحيحة من 1 إلى 100 ثم اطرح منه 50 واقسم الناتج على 5 واكتب الجواب",
        "Ένας αριθμός είναι 5 μεγαλύτερος από έναν άλλο και το άθροισμά τους είναι 27, ποιοι είναι οι αριθμοί;",
        "ﬁnd the ＡＢＣ of straße",
        "",
    ],
)
@pytest.mark.parametrize("words", [1, 3, 13])
def test_where_words_are_separated_runs_are_what_they_were(text, words):
    assert list(BenchmarkProblems(words)._of(text)) == old_runs(text, words)


def test_a_long_text_takes_no_longer_than_its_length_says():
    began = time.monotonic()
    measured("一二三四五六七八九十" * 5000).match("abc " * 20000)
    assert time.monotonic() - began < 5
