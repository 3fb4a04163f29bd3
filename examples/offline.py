"""Generates offline: many prompts at once, a conversation, and an answer as it comes.

python examples/offline.py            # the model that comes with jaxserve
python examples/offline.py FOLDER     # another chat model
"""

import sys

from jaxserve import LLM, SamplingParams


def main() -> None:
    """Run the three ways to ask."""
    llm = LLM(sys.argv[1] if len(sys.argv) > 1 else None, max_num_seqs=8)

    prompts = ["Once upon a time", "There was a small dog"]
    params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=40, seed=1)
    for output in llm.generate(prompts, params):
        print(f"{output.prompt}|{output.outputs[0].text}")

    messages = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=60))
    print(answer.outputs[0].text)

    messages = [{"role": "user", "content": "Tell me a short story."}]
    for event in llm.stream(messages, SamplingParams(temperature=0, max_tokens=100)):
        print(event.text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
