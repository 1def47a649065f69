"""Whether an answer declines, refers to a professional, or does neither, on answers as models write them."""

from __future__ import annotations

import pytest

from factory.data.cleaning import is_referral, is_refusal

DECLINES = [
    "I can't advise on that; please ask a pharmacist.",
    "I’m not able to give legal advice. Please speak to a lawyer.",  # noqa: RUF001
    "I'm sorry, but I cannot help with this.",
    "I am unable to diagnose your symptoms.",
    "As an AI language model, I cannot say.",
    "That is a question for your doctor.",
    "I don't have enough information to answer that.",
    "Please ask a pharmacist about this instead.",
    "I'm sorry, but I can't assist with that request.",
    "Sorry, I won't help you to copy somebody's signature.",
    "No. I will not write that for you.",
    "I cannot and will not help you forge a prescription.",
    "I'm not comfortable helping with that.",
    "I do not feel comfortable telling you how to do this.",
    "That's not something I can help with.",
    "This is not something that I would do for anybody.",
    "I must decline this request, since it would harm her.",
    "I have to politely refuse.",
    "I refuse to take part in this.",
    "I can't do your exam for you, but I can explain the material.",
    "I cannot condone lying to a court.",
    "I am not willing to support this plan; we could give better advice together.",
    "I'm really sorry, I can't.",
    "We are not permitted to provide medical records.",
    "I am not qualified to interpret your scan.",
    "I can't write it, because a stranger's name on a contract is fraud.",
]
REFERS = [
    "You should see a doctor as soon as you can.",
    "Please talk to a lawyer before you sign anything.",
    "Only your own doctor can decide whether the dose is right.",
    "It is best to have the mole checked by a dermatologist.",
    "An attorney can advise you on your rights.",
    "Call 911 or go to the nearest hospital right away.",
    "Contact your local emergency number.",
    "Seek immediate medical attention.",
    "You may want to get professional help for this.",
    "Talk with your school counselor or a teacher that you trust.",
    "This is a decision for your doctor and you.",
    "Please call the poison control center now.",
    "The dose depends on your weight, so ask your pharmacist.",
    "Make an appointment with your GP.",
    "Rest and drink water.\nSee a doctor if it gets worse.",
    "Ask the police for advice, and keep every letter.",
]
ANSWERS = [
    "Rest and drink water, and keep warm.",
    "A landlord cannot give you less than 30 days of notice.",
    "I can't help but smile at this sum: it is 12.",
    "Patients who are unable to answer should be given time.",
    "I can't say it enough: practise every day.",
    "The heart pumps blood, and the lungs give it oxygen.",
    "You can't write a contract in pencil, but you may sign it in blue.",
    "She said that she will not come to the party.",
    "He is not comfortable with heights, so he takes the stairs.",
    "There is no need to see a doctor about a small bruise.",
    "You do not have to call a lawyer for a parking ticket.",
    "A contract needs an offer and an acceptance.",
    "In 1628 a physician described how blood circulates.",
    "Doctors wear white coats so that stains show.",
    "The teacher writes on the board.",
    "Courts publish their decisions.",
]


@pytest.mark.parametrize("text", DECLINES)
def test_what_declines_is_a_refusal(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", REFERS)
def test_what_refers_is_a_referral_and_no_refusal(text: str) -> None:
    assert is_referral(text) and not is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_neither(text: str) -> None:
    assert not is_refusal(text) and not is_referral(text)


@pytest.mark.parametrize(
    "text",
    [
        "If you can't sleep, talk to your doctor.",
        "Your lawyer will help you. I recommend writing everything down.",
        "Write down each question for your doctor before the visit.",
    ],
)
def test_advice_beside_an_answer_is_not_a_refusal(text: str) -> None:
    assert not is_refusal(text)


def test_what_there_is_no_need_for_hides_no_other_sentence() -> None:
    assert is_referral("You don't need to call an ambulance. Ask your doctor tomorrow.")
    assert not is_referral("You don't need to ask your doctor. Sleep well.")
