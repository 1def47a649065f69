"""Asks a server one question after another and says when another version answers.

    python scripts/live_client.py healthcare-small --until healthcare-small@3

Ends when that version has answered five times: exit code 0 if no request was lost. One client in one process, no retries.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from openai import OpenAI, OpenAIError

ENOUGH = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("--until", required=True, metavar="REFERENCE", help="the version whose answers end the loop")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--minutes", type=float, default=60, help="at most")
    given = parser.parse_args()
    client = OpenAI(base_url=given.url, api_key="not needed on this machine", max_retries=0, timeout=60)
    answered: Counter[str] = Counter()
    lost, before, begun = 0, "", time.monotonic()
    while answered[given.until] < ENOUGH and time.monotonic() - begun < 60 * given.minutes:
        try:
            reply = client.chat.completions.with_raw_response.create(
                model=given.student, messages=[{"role": "user", "content": "What are early signs of asthma?"}], max_tokens=32
            )
            version = reply.headers["x-factory-version"]
            text = reply.parse().choices[0].message.content
            answered[version] += 1
            if version != before:
                print(f"{time.strftime('%X')} {version} answers: {text}", flush=True)
                before = version
        except OpenAIError as error:
            lost += 1
            print(f"{time.strftime('%X')} lost: {error}", flush=True)
        time.sleep(1)  # a person's pace, nearly: the machine has a student to build meanwhile
    print(f"{sum(answered.values())} answers ({', '.join(f'{n} of {v}' for v, n in answered.items())}), {lost} lost")
    sys.exit(1 if lost or answered[given.until] < ENOUGH else 0)


if __name__ == "__main__":
    main()
