"""Who answers? python scripts/cascade_client.py healthcare "What are early signs of asthma?" "Can I take both tablets at once?"

Needs a running `factory serve` of a family with a cascade (docs/serving.md). The model's name is the domain's, or `auto`.
"""

import argparse
import sys

from openai import OpenAI, OpenAIError

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="not needed on this machine")


def ask(model: str, question: str) -> None:
    """Prints the answer, and the way that the question took through the cascade."""
    messages = [{"role": "user", "content": question}]
    raw = client.chat.completions.with_raw_response.create(model=model, messages=messages, max_tokens=96)
    answer, headers = raw.parse(), raw.headers
    print(f"\n{question}\n  {answer.choices[0].message.content}")
    print(f"  answered by {headers['x-factory-version']}; asked: {headers.get('x-factory-cascade', 'nobody else')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a domain, such as healthcare, or auto")
    parser.add_argument("questions", nargs="+")
    given = parser.parse_args()
    try:
        for one in given.questions:
            ask(given.model, one)
    except OpenAIError as error:
        sys.exit(f"error: {error}; is `factory serve` running, with `serve: {{cascade: [...]}}` in its family file?")
