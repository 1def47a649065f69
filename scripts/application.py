"""Two students write a school nurse's handout: python scripts/application.py "asthma"

Needs a running `factory serve`. To an application a student is just a model name; any OpenAI client works.
"""

import argparse
import sys

from openai import OpenAI, OpenAIError

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="not needed on this machine")


def ask(student: str, question: str) -> str:
    """Streams the answer to the terminal, after the version that gives it."""
    messages = [{"role": "user", "content": question}]
    answer = ""
    with client.chat.completions.with_streaming_response.create(
        model=student, messages=messages, max_tokens=96, stream=True
    ) as response:
        print(f"\n{response.headers['x-factory-version']}: ", end="")
        for chunk in response.parse():
            text = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            print(text, end="", flush=True)
            answer += text
    print()
    return answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topic", nargs="?", default="asthma")
    topic = parser.parse_args().topic
    try:
        facts = ask("healthcare-medium", f"What are early signs of {topic}?")
        ask("education-medium", f"Write one question for a pupil who has read this: {facts}")
    except OpenAIError as error:
        sys.exit(f"error: {error}; is `factory serve` running with both students in the registry?")
