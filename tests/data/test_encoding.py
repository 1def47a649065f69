"""Encodings of files: UTF-8 where it fits, byte order marks, the usual others, and damaged UTF-8."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.data import encoding
from factory.data.encoding import encoding_of, open_text

TEXTS = {
    "cp1252": "Frage;Antwort\nWie heißt der größte Fluss?;Die Donau. Für Öl: 5 €.\n",
    "cp1250": "pytanie;odpowiedź\nCo to jest źródło?;Miejsce, gdzie woda wypływa. Żółć, łódź, ćma.\n",
    "cp1251": "вопрос;ответ\nЧто такое астма?;Это болезнь дыхательных путей.\n",  # noqa: RUF001
    "shift_jis": "質問,回答\n東京はどこですか?,東京は日本の首都です。\n",
    "gb18030": "问题,答案\n什么是哮喘?,哮喘是一种呼吸道疾病。\n",
}


OTHERS = [
    ("cp1252", "Où est la mère de l'élève ? Ça va très bien, à côté de l'hôtel."),
    ("cp1252", "Größe und Länge sind schön; für Äpfel über Österreich."),
    ("cp1252", "¿Dónde está el niño? Mañana por la mañana, señor. El nº 3."),
    ("cp1252", "Não há informações. As configurações estão aqui; você é o dono da ação."),
    ("cp1252", "Perché è così? La città è più bella di quanto si può dire, 3 m³ all'ora."),
    ("cp1252", "Är det så att på måndag går vi till ön? Åsa äter äpplen."),
    ("cp1252", "Hvor er nøglen? På bordet, ved siden af æblerne."),
    ("cp1252", "Hvað er þetta? Það er íslenskur texti og hann er mjög góður."),
    ("cp1250", "Dobrý den, kde najdu účet? Děkuji za rychlou odpověď, příště zavolám a řeknu, že je to v pořádku."),
    ("cp1250", "Zażółć gęślą jaźń. Proszę sprawdzić łącze i połączyć się ponownie."),
    ("cp1250", "Kérem, ellenőrizze a jelszót és próbálja újra. Árvíztűrő tükörfúrógép."),
    ("cp1250", "Kje je ključ? V omari, če želiš, ga lahko prineseš."),
    ("cp1254", "Pijamalı hasta yağız şoföre çabucak güvendi. Şifremi unuttum, ne yapmalıyım?"),  # noqa: RUF001
]


@pytest.mark.parametrize(("name", "text"), OTHERS)
@pytest.mark.parametrize("times", [1, 20])
def test_languages_of_neighbouring_encodings_are_told_apart(tmp_path: Path, name: str, text: str, times: int) -> None:
    path, text = tmp_path / "a.csv", "q;a\n" + f"{text};x\n" * times
    path.write_bytes(text.encode(name))
    with open_text(path, encoding_of(path)) as file:
        assert file.read() == text


@pytest.mark.parametrize("name", [*TEXTS, "utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    text, path = TEXTS.get(name, "Größe 東京 🙂\n" * 3), tmp_path / "a.csv"
    path.write_bytes(text.encode(name))
    with open_text(path, encoding_of(path)) as file:
        assert file.read() == text


def test_one_word_outside_ascii_far_into_a_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"plain\n" * 300_000 + "Zürich im Café\n".encode("cp1252")))
    with open_text(path, encoding_of(path)) as file:
        assert file.read().endswith("Zürich im Café\n")


def test_damaged_utf_8_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("é\nü\nplain\n".encode() + b"\xe9\n")
    with pytest.raises(ValueError, match="line 4 is not UTF-8, as 2 others are"):
        encoding_of(path)


def test_bytes_of_no_encoding_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(ValueError, match="line 2 is not UTF-8; save the file as UTF-8"):
        encoding_of(tmp_path / "a.csv")


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), block=st.integers(1, 8))
def test_utf_8_is_utf_8_wherever_a_block_ends(tmp_path_factory: pytest.TempPathFactory, text: str, block: int) -> None:
    path = tmp_path_factory.mktemp("blocks") / "a.txt"
    path.write_bytes(("a" + text).encode())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(encoding, "BLOCK", block)
        assert encoding_of(path) == "utf-8"
