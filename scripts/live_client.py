"""Sends one question after another to a server, and reports when a new version answers.

    python scripts/live_client.py healthcare-medium --until healthcare-medium@3

Ends when that version has answered five times. Exit code 0 if no request failed. One client, no retries.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from openai import OpenAI, OpenAIError

ENOUGH = 5  # answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("--until", required=True, metavar="REFERENCE", help="the version to wait for")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--minutes", type=float, default=60, help="give up after this many minutes")
    options = parser.parse_args()
    client = OpenAI(base_url=options.url, api_key="not needed on this machine", max_retries=0, timeout=60)
    answered: Counter[str] = Counter()
    failed, current, started = 0, "", time.monotonic()
    while answered[options.until] < ENOUGH and time.monotonic() - started < 60 * options.minutes:
        try:
            reply = client.chat.completions.with_raw_response.create(
                model=options.student, messages=[{"role": "user", "content": "What are early signs of asthma?"}], max_tokens=32
            )
            version = reply.headers["x-factory-version"]
            text = reply.parse().choices[0].message.content
            answered[version] += 1
            if version != current:
                print(f"{time.strftime('%X')} {version} answers: {text}", flush=True)
                current = version
        except OpenAIError as error:
            failed += 1
            print(f"{time.strftime('%X')} failed: {error}", flush=True)
        time.sleep(1)  # about a person's pace: the same machine is building a student
    print(f"{sum(answered.values())} answers ({', '.join(f'{n} of {v}' for v, n in answered.items())}), {failed} failed")
    sys.exit(1 if failed or answered[options.until] < ENOUGH else 0)


if __name__ == "__main__":
    main()
