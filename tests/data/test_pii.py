"""Personal identifiers: each kind in the ways people write it, nothing in ordinary text with numbers, and never a value."""

from __future__ import annotations

import logging
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config.load import load_specs
from factory.config.schema import TemplateSource
from factory.data import pii as privacy
from factory.data.pii import filter_pii, find_identifiers, labelled
from factory.data.sources import Example
from factory.errors import DataError

# Reserved for examples: example.com, 555-01xx, Ofcom's drama numbers, documentation addresses, test cards. Or known specimens.
WRITTEN = {
    "email": [
        "Write to ann@example.com.",
        "ANN.LEE+clinic@mail.example.co.uk",
        "Ann O'Neil <ann.oneil@example.org> wrote",
        "mailto:info@xn--80ak6aa92e.com",
    ],
    "phone": [
        "Call 212-555-0123 now",
        "(212) 555-0199",
        "(555) 123-4567",
        "+1 212 555 0142",
        "212.555.0123",
        "1-800-555-0199",
        "phone 2125550123",
        "her cell: 2125550123",
        "my cell is 07700900123",
        "Tel.: 555-0142",
        "please call me at 555-0123",
        "020 7946 0958",
        "0161 496 0123",
        "07700 900123",
        "07700900123",
        "+44 7700 900123",
        "+44 20 7946 0958",
        "(0161) 496 0123",
        "212\u2013555\u20130123",
        "212\u00a0555\u00a00123",
    ],
    "social_security": [
        "SSN 078-05-1120",
        "078-05-1120",
        "ssn: 078051120",
        "Her social security number is 078 05 1120.",
        "987-65-4321",
        "078\u201005\u20101120",
    ],
    "card": [
        "4111 1111 1111 1111",
        "4111111111111111",
        "4111-1111-1111-1111",
        "Visa 4012888888881881, exp. 12/27",
        "5555 5555 5555 4444",
        "2223 0031 2200 3222",
        "3782 822463 10005",
        "371449635398431",
        "6011 1111 1111 1117",
        "3056 930902 5904",
    ],
    "iban": ["GB82 WEST 1234 5698 7654 32", "to DE89370400440532013000 by Friday", "FR14-2004-1010-0505-0001-3M02-606"],
    "medical_record": [
        "MRN 12345678",
        "MRN: 00-123-456",
        "mrn#4482913",
        "Her medical record number is 4482913.",
        "Patient ID: PT-445122",
        "hospital no. 123456",
        "Medical record #: A1234567",
    ],
    "medical_licence": ["DEA number AB1234563", "DEA: AB1234563", "medical license no. AB1234563"],
    "medicare": ["Medicare 1EG4-TE5-MK73", "1EG4-TE5-MK72"],
    "nhs_number": ["NHS number 943 476 5919", "943 476 5919", "NHS no: 9434765919", "her NHS number is 943-476-5919"],
    "passport": ["passport number 123456789", "Passport No. A12345678"],
    "driver_licence": [
        "driver's license D1234567",
        "driver\u2019s licence number: D123-4567-8901",
        "driving licence MORGA753116SM9IJ",
    ],
    "national_insurance": ["AB 12 34 56 C", "NI number AB123456C"],
    "ip_address": [
        "from 192.0.2.44",
        "198.51.100.7:8080",
        "IP address 8.8.8.8",
        "2001:db8::1",
        "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    ],
}
ORDINARY = [
    # health
    "Take 500 mg of paracetamol every 6 hours, at most 4000 mg in 24 hours.",
    "A systolic pressure of 120 to 129 mmHg over less than 80 mmHg is elevated.",
    "In 2019, about 1,234,567 people were vaccinated; by 2020 it was 2 345 678.",
    "The incubation period is 2-14 days, and 97.5 % of cases show within 11.5 days.",
    "Her temperature rose from 36.8 to 39.4 degrees between 14:30 and 18:45.",
    "A body mass index of 18.5-24.9 is healthy; 25.0-29.9 is overweight.",
    "The trial (N = 12,345; 2003-2007) found a hazard ratio of 0.87 (0.79-0.96).",
    "Call 911 or, in Europe, 112 if someone cannot breathe.",
    "The helpline 988 answers day and night, and NHS 111 does too.",
    "Vitamin B12 below 200 pg/mL and folate below 4.0 ng/mL point to a deficiency.",
    "Dilute 1:1000, then 1:10,000; give 0.3 mL to 0.5 mL.",
    "Children of 6 months to 8 years need 2 doses, 28 days apart.",
    "The ward has 24 beds in rooms 101-112 and 201-212.",
    "The hospital treated 250000 patients in 2021 and 2022.",
    "The medical records of 120000 patients were read for the study of 2018.",
    "ICD-10 code E11.9 became ICD-11 code 5A11 in 2022.",
    "The CAS number of aspirin is 50-78-2, that of caffeine 58-08-2.",
    "The gene lies on chromosome 17, positions 43,044,295 to 43,125,364.",
    "A cell 100-1000 micrometres long divides every 20 to 24 hours.",
    "Platelets of 150000 to 450000 per microlitre are normal.",
    "Doctors use the DEA schedule of 1970, in 21 CFR 1308.11 to 1308.15.",
    "The NHS was founded on 5 July 1948 and spent 152,600,000,000 pounds in 2021.",
    "Medicare began in 1965; Part B costs 174.70 dollars a month since 2024.",
    "See NCT04368728 and doi 10.1056/NEJMoa2034577 for the protocol.",
    # school
    "12 x 12 = 144 and 144 / 12 = 12, so 1234567890 / 10 = 123456789.",
    "The first digits of pi are 3.14159265358979, those of e 2.718281828459045.",
    "Avogadro's number is 6.02214076e23, the speed of light 299 792 458 m/s.",
    "Count in fives: 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60.",
    "The wars of 1914-1918 and 1939-1945 were 21 years apart.",
    "Compare the years 1914 1918 1939 1945 1989 1991 on a line of time.",
    "Light travels 9 460 730 472 580 kilometres in a year.",
    "The population grew from 1 650 000 000 in 1900 to 7 900 000 000 in 2021.",
    "Read pages 1203-1210 and answer questions 1 to 20 by 2024-05-14.",
    "The training_set is at 10:30:00 in room 204, and again on 14/05/2024.",
    "Convert 255.75 from decimal to binary: 11111111.11.",
    "0101 1010 1111 0000 is 5AF0 in base 16; 0x7FFFFFFF is 2147483647.",
    "The ratio 1:2:3:4:5:6:7:8 has eight parts.",
    "If x = 4000 and y = 5000, then x + y = 9000 and x * y = 20000000.",
    "The sequence 1 1 2 3 5 8 13 21 34 55 89 144 233 377 610 987 is Fibonacci's.",
    "Phone calls cost 15 pence in 2005 and 0 in 2015.",
    "The book has ISBN 978-3-16-148410-0 and costs 12.99.",
    "Write a text of 1000-1500 words, and call it done by 12-15 May.",
    "The answers are 6172530123 and 9434765919, or neither.",
    "Rows of 1914 1918 1939 1947 and 1000 2000 3000 4000 seats were sold.",
    "John sold 1200 apples @ 0.25 each, and 300 pears @0.50.",
    "Use section 4.2.1.3 of the manual for Python 3.11.4.1.",
    "Earth is 149,597,870.7 km from the Sun, Neptune 4,495,000,000 km.",
    "The coordinates are 51.5072 N, 0.1276 W; the height is 8848.86 m.",
    "The object 1.3.6.113.4.1.311 and the part 1EG4TE5MK73 are in the list of 2024.",
    # law
    "Section 230 of the Communications Decency Act of 1996 is 47 U.S.C. 230.",
    "Miranda v. Arizona, 384 U.S. 436 (1966), was decided on June 13, 1966.",
    "Brown v. Board of Education, 347 U.S. 483, 495 (1954).",
    "Under 42 U.S.C. 1983 and 28 U.S.C. 1331-1332 a federal court may hear it.",
    "The claim of 75,000.00 dollars was filed as No. 19-1392 in 2021.",
    "Case 2:21-cv-01234-ABC was heard at 9:30 on 2021-11-08.",
    "Regulation (EU) 2016/679 applies from 25 May 2018; fines reach 20 000 000 euros.",
    "Rule 12.1.2.3 gives 21 days, Rule 12.1.2.4 gives 60.",
    "Notice of 30 days is due under section 21 of the Housing Act 1988.",
    "The tenant paid 1,450 a month for 12 months, 17,400 in all.",
    "Social Security began in 1935 and pays some 67,000,000 people.",
    "A passport is valid for 10 years; form DS-11 costs 130 dollars in 2024.",
    "A driver's license may be suspended for 90 days after 12 points in 2 years.",
    "Public Law 104-191 has 169 pages, 110 Stat. 1936 to 110 Stat. 2103.",
    "The statute, at 12 Del. C. 3801-3826, dates from 1988.",
    "Article 6(1)(f) and recitals 47-49 balance interests; see C-131/12.",
    "The contract of 03/04/2005 ends on 31.12.2025 at 24:00.",
    "She borrowed 4000 5000 times over, said the brief of 10,000 words.",
    "Bail was set at $1,000,000 in 1995 and at $250,000 in 1996.",
    "Ordinance 2010-0045, chapter 10.04.120, allows 0.08 percent.",
    # neither
    "",
    "@",
    "No number here, and no address.",
    "std::vector, add::face and dead::beef::1 are names in code.",
    "Follow @someone2024 or #year2025 there.",
    "user@localhost and ann@clinic.invalid reach nobody, ever, 2024.",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a scan asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def example(prompt: str, completion: str = "", source: str = "notes", number: int = 0) -> Example:
    return Example(f"{source}/{number}", prompt, completion, source, "CC0-1.0", "", ())


def test_no_later_turn_of_a_chat_shows_what_was_dropped_from_it() -> None:
    turns = [
        Example(f"chat/{name}#{number}", prompt, "yes", "chat", "MIT", "", (f"chat/{name}",))
        for name in "ab"
        for number, prompt in enumerate(["hello", "I am ann@example.com" if name == "a" else "I am Ann", "so"])
    ]
    dropped = Counter[str]()
    kept, found = filter_pii(turns, "drop", domain="care", dropped=dropped)
    assert [one.id for one in kept] == ["chat/a#0", "chat/b#0", "chat/b#1", "chat/b#2"]
    assert dropped == {"personal_data": 2} and found == {"chat": {"email": 1}}
    assert filter_pii(turns, "allow", domain="care", dropped=dropped)[0] == turns


# finding


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in WRITTEN.items() for text in texts])
def test_each_kind_is_found_as_people_write_it(kind: str, text: str) -> None:
    assert find_identifiers(text) == {kind: 1}
    assert find_identifiers(f"She said: {text} It was so.") == {kind: 1}


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_with_numbers_holds_none(text: str) -> None:
    assert find_identifiers(text) == {}


def test_a_wrong_check_digit_is_no_identifier() -> None:
    for text in ("4111 1111 1111 1112", "GB82 WEST 1234 5698 7654 33", "NHS number 9434765918", "DEA number AB1234564"):
        assert find_identifiers(text) == {}


def test_several_are_counted_by_kind() -> None:
    text = "Ann: ann@example.com, 212-555-0123. Bob: bob@example.com, MRN 12345678, card 4111 1111 1111 1111."
    assert find_identifiers(text) == {"email": 2, "phone": 1, "medical_record": 1, "card": 1}


def test_an_identifier_twice_counts_twice() -> None:
    assert find_identifiers("ann@example.com or ann@example.com") == {"email": 2}


def test_a_text_that_can_hold_none_is_not_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "_rules", lambda: pytest.fail("scanned"))
    assert find_identifiers("") == find_identifiers("What are early signs of asthma in 3 words?") == {}
    with pytest.raises(pytest.fail.Exception):
        find_identifiers("8.8.8.8")


@given(st.text())
def test_any_text_can_be_scanned(text: str) -> None:
    assert set(find_identifiers(text + " 12345 @")) <= set(WRITTEN)


def test_a_label_belongs_to_the_number_beside_it() -> None:
    import regex

    pattern = regex.compile(labelled("mrn|chart no", r"\d{6}"), regex.IGNORECASE)
    for text in ("MRN 123456", "mrn no. is: 123456", "Chart no. 123456", "mrn#123456"):
        assert pattern.search(text)[0] == "123456"
    for text in ("123456", "mrns 123456", "MRN of the man in bed 123456", "amrn 123456"):
        assert not pattern.search(text)


# screening

PERSONAL = [
    example("What is gout?", number=0),
    example("Who is ann@example.com?", "Ann, 212-555-0123 or 212-555-0199.", number=1),
    example("", "MRN 12345678 was seen in 2019.", "letters"),
]


def test_drop_leaves_out_examples_and_counts_them() -> None:
    dropped = Counter({"empty": 2})
    kept, found = filter_pii(PERSONAL, "drop", domain="health", dropped=dropped)
    assert kept == PERSONAL[:1]
    assert dropped == {"empty": 2, "personal_data": 2}
    assert found == {"notes": {"phone": 2, "email": 1}, "letters": {"medical_record": 1}}


def test_allow_keeps_everything_and_still_counts() -> None:
    dropped: Counter[str] = Counter()
    kept, found = filter_pii(PERSONAL, "allow", domain="health", dropped=dropped)
    assert kept == PERSONAL
    assert not dropped
    assert found == {"notes": {"phone": 2, "email": 1}, "letters": {"medical_record": 1}}


def test_refuse_says_in_one_line_what_is_where_and_what_to_do() -> None:
    dropped: Counter[str] = Counter()
    with pytest.raises(DataError) as caught:
        filter_pii(PERSONAL, "refuse", domain="health", dropped=dropped)
    assert str(caught.value) == (
        "domain 'health' refuses personal data, but its sources contain some (notes: 2 phone, 1 email; "
        "letters: 1 medical_record); clean them, or set `personal_data: drop` to leave these examples out"
    )
    assert not dropped


@pytest.mark.parametrize("policy", ["refuse", "drop", "allow"])
def test_clean_examples_pass_under_every_policy(policy: privacy.Policy) -> None:
    dropped: Counter[str] = Counter()
    assert filter_pii(PERSONAL[:1], policy, domain="health", dropped=dropped) == (PERSONAL[:1], {})
    assert filter_pii([], policy, domain="health", dropped=dropped) == ([], {})
    assert not dropped


VALUES = st.one_of(
    st.from_regex(r"[a-z]{6,12}@example\.com", fullmatch=True),
    st.from_regex(r"(212|646)-555-01[0-9]{2}", fullmatch=True),
    st.from_regex(r"9[0-9]{2}-[1-9]{2}-[1-9]{4}", fullmatch=True),
    st.from_regex(r"MRN [1-9][0-9]{7}", fullmatch=True),
    st.from_regex(r"192\.0\.2\.[1-9][0-9]", fullmatch=True),
)


@given(st.lists(VALUES, min_size=1, max_size=4), st.booleans())
def test_no_value_is_in_the_error_nor_in_a_log(values: list[str], as_prompt: bool) -> None:
    text = f"Notes: {', '.join(values)}."
    record = example(text) if as_prompt else example("What is in the notes?", text)
    with logged() as lines, pytest.raises(DataError) as caught:
        filter_pii([record], "refuse", domain="health", dropped=Counter())
    counts = re.findall(r"(\d+) [a-z_]+", str(caught.value))
    assert sum(map(int, counts)) == len(values)
    for said in (str(caught.value), *lines):
        assert not any(value.removeprefix("MRN ") in said for value in values)


@contextmanager
def logged() -> Iterator[list[str]]:
    """Everything that is logged meanwhile, at any level."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


# what ships


def shipped() -> Iterator[TemplateSource]:
    specs = load_specs(Path(__file__).parents[2] / "domains")
    for spec in (*specs.domains.values(), *specs.pools.values()):
        yield from (source for source in spec.sources if isinstance(source, TemplateSource))


def test_shipped_templates_and_their_values_hold_none() -> None:
    sources = list(shipped())
    assert len(sources) > 20
    for source in sources:
        texts = [*source.templates, *(", ".join(values) for values in source.slots.values())]
        assert find_identifiers("\n".join(texts)) == {}, source.id
