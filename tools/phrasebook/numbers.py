"""Numbers, dates and clock times in words, in English and in Vietnamese."""

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = [
    "zero",
    "ten",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
]
_DIGITS = ["không", "một", "hai", "ba", "bốn", "năm", "sáu", "bảy", "tám", "chín"]

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]

WEEKDAYS = (
    ("Monday", "thứ hai"),
    ("Tuesday", "thứ ba"),
    ("Wednesday", "thứ tư"),
    ("Thursday", "thứ năm"),
    ("Friday", "thứ sáu"),
    ("Saturday", "thứ bảy"),
    ("Sunday", "chủ nhật"),
)


def english_number(value: int) -> str:
    """``value`` (0 to 999,999) in English words; raises ``ValueError`` outside that range."""
    _check(value)
    if value < 20:
        return _ONES[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
    if value < 1000:
        hundreds, rest = divmod(value, 100)
        return f"{_ONES[hundreds]} hundred" + (f" and {english_number(rest)}" if rest else "")
    thousands, rest = divmod(value, 1000)
    words = f"{english_number(thousands)} thousand"
    if rest:
        words += f"{' and' if rest < 100 else ''} {english_number(rest)}"
    return words


def vietnamese_number(value: int) -> str:
    """``value`` (0 to 999,999) in Vietnamese words; raises ``ValueError`` outside that range.

    One and five change after the tens (``mốt``, ``lăm``), an empty tens place is read ``linh``,
    and an empty hundreds place inside a larger number is read ``không trăm``.
    """
    _check(value)
    if value < 1000:
        return _below_thousand(value)
    thousands, rest = divmod(value, 1000)
    words = f"{_below_thousand(thousands)} nghìn"
    if not rest:
        return words
    if rest < 100:
        words += " không trăm" + (" linh" if rest < 10 else "")
    return f"{words} {_below_thousand(rest)}"


def _check(value: int) -> None:
    if not 0 <= value <= 999_999:
        raise ValueError(f"numbers from 0 to 999,999 have words here, not {value}")


def _below_thousand(value: int) -> str:
    hundreds, rest = divmod(value, 100)
    if not hundreds:
        return _below_hundred(rest)
    words = f"{_DIGITS[hundreds]} trăm"
    if not rest:
        return words
    return f"{words} linh {_DIGITS[rest]}" if rest < 10 else f"{words} {_below_hundred(rest)}"


def _below_hundred(value: int) -> str:
    tens, ones = divmod(value, 10)
    if tens == 0:
        return _DIGITS[ones]
    words = "mười" if tens == 1 else f"{_DIGITS[tens]} mươi"
    if ones == 0:
        return words
    if ones == 1 and tens > 1:
        return f"{words} mốt"
    return f"{words} lăm" if ones == 5 else f"{words} {_DIGITS[ones]}"


def date(day: int, month: int, year: int | None = None) -> tuple[str, str]:
    """A calendar date: ``March 15, 1998`` and ``ngày 15 tháng 3 năm 1998``."""
    english = f"{MONTHS[month - 1]} {day}" + (f", {year}" if year else "")
    return english, f"ngày {day} tháng {month}" + (f" năm {year}" if year else "")


def clock(hour: int, minute: int) -> tuple[str, str]:
    """A time of the twelve-hour clock; ``minute`` is a multiple of five.

    Half hours are ``half past``/``rưỡi``; the other minutes are counted from the full hour in
    both languages, so that one English time has one Vietnamese reading.
    """
    name, hours = english_number(hour), f"{vietnamese_number(hour)} giờ"
    if minute == 0:
        return f"{name} o'clock", hours
    if minute == 30:
        return f"half past {name}", f"{hours} rưỡi"
    if minute == 15:
        return f"a quarter past {name}", f"{hours} mười lăm phút"
    return f"{name} {english_number(minute)}", f"{hours} {vietnamese_number(minute)} phút"
