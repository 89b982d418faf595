"""The official clients' calls against one server; run by the interpreter that has them.

`python official_clients.py URL` prints one JSON object: what each call brought, by its name.
"""

import json
import sys

import anthropic
import openai

URL = sys.argv[1]
MODEL, TOKENS, TOO_MANY = "tiny", 20, 60_000
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
ASKED = {"model": MODEL, "messages": MESSAGES}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def openai_client(*, strict: bool = True) -> openai.OpenAI:
    """One that checks every field of an answer against its types, where it is strict."""
    return openai.OpenAI(
        base_url=f"{URL}/v1", api_key="x", max_retries=0, _strict_response_validation=strict
    )


OPENAI = openai_client()
# Its types know no event of a completion without a finish reason, though OpenAI's have none either.
LENIENT = openai_client(strict=False)
ANTHROPIC = anthropic.Anthropic(
    base_url=URL, api_key="x", max_retries=0, _strict_response_validation=True
)


def chat():
    answer = OPENAI.chat.completions.create(**ASKED, max_tokens=TOKENS)
    usage = answer.usage
    return answer.choices[0].message.content, usage.prompt_tokens, usage.completion_tokens


def chat_streamed():
    events = list(OPENAI.chat.completions.create(**ASKED, max_completion_tokens=TOKENS, **USAGE))
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    return text, events[-1].usage.prompt_tokens, events[-1].usage.completion_tokens


def completion():
    answer = OPENAI.completions.create(model=MODEL, prompt="Why?", max_tokens=TOKENS)
    return answer.choices[0].text, answer.usage.prompt_tokens, answer.usage.completion_tokens


def completion_streamed():
    asked = {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": TOKENS}
    events = list(LENIENT.completions.create(**asked, **USAGE))
    text = "".join(event.choices[0].text for event in events if event.choices)
    return text, events[-1].usage.prompt_tokens, events[-1].usage.completion_tokens


def response():
    answer = OPENAI.responses.create(model=MODEL, input="Why?", max_output_tokens=TOKENS)
    return answer.output_text, answer.usage.input_tokens, answer.usage.output_tokens


def response_streamed():
    asked = {"model": MODEL, "instructions": "Be brief.", "max_output_tokens": TOKENS}
    events = list(OPENAI.responses.create(**asked, input=MESSAGES, stream=True))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    last = events[-1].response
    assert last.output_text == text
    return text, last.usage.input_tokens, last.usage.output_tokens


def message():
    answer = ANTHROPIC.messages.create(**ASKED, max_tokens=TOKENS, system="Be brief.")
    return answer.content[0].text, answer.usage.input_tokens, answer.usage.output_tokens


def message_streamed():
    with ANTHROPIC.messages.stream(**ASKED, max_tokens=TOKENS) as stream:
        text = "".join(stream.text_stream)
        usage = stream.get_final_message().usage
    return text, usage.input_tokens, usage.output_tokens


def refusal(call, **asked):
    """The name of what a call raises, and what it says."""
    try:
        call(messages=MESSAGES, **asked)
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return type(error).__name__, str(error)
    return None


ANSWERS = (
    chat,
    chat_streamed,
    completion,
    completion_streamed,
    response,
    response_streamed,
    message,
    message_streamed,
)
REFUSALS = {
    "openai": OPENAI.chat.completions.create,
    "anthropic": ANTHROPIC.messages.create,
}

if __name__ == "__main__":
    found = {
        "models": [model.id for model in OPENAI.models.list()],
        "answers": {call.__name__: call() for call in ANSWERS},
        "unknown": {
            name: refusal(call, model="other", max_tokens=1) for name, call in REFUSALS.items()
        },
        "too_long": {
            name: refusal(call, model=MODEL, max_tokens=TOO_MANY, stream=True)
            for name, call in REFUSALS.items()
        },
    }
    sys.stdout.write(json.dumps(found))
