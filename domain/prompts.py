"""Prompt versions: plain JSON from which exact chat messages are rendered, here and nowhere else."""

import json
from typing import TypedDict, cast

from pydantic import BaseModel, ConfigDict, JsonValue

from domain.canonical import canonical, digest
from domain.schemas import OutputSchema


class Message(TypedDict):
    """One chat message as the OpenAI API wants it."""

    role: str
    content: str


class Demo(BaseModel):
    """A solved example inside a prompt."""

    model_config = ConfigDict(frozen=True)

    inputs: dict[str, JsonValue]
    output: dict[str, JsonValue]


class PromptVersion(BaseModel):
    """The compiled prompt of one tier; its hash is its name."""

    model_config = ConfigDict(frozen=True)

    instructions: str
    answer_format: str
    input_fields: tuple[str, ...]
    output_fields: tuple[str, ...]
    demos: tuple[Demo, ...] = ()

    @property
    def hash(self) -> str:
        """sha256 of the canonical form."""
        return digest(self.model_dump(mode="json"))

    def system(self) -> str:
        """The system message."""
        return f"{self.instructions.strip()}\n{self.answer_format}".strip()

    def render(self, inputs: dict[str, JsonValue]) -> list[Message]:
        """The exact messages for one row; row text is data and is never read as a template."""
        return [*self.opening(), self.question(inputs)]

    def opening(self) -> list[Message]:
        """The messages before the row's own: the same for every row."""
        messages = [Message(role="system", content=self.system())]
        for demo in self.demos:
            messages.append(self.question(demo.inputs))
            messages.append(Message(role="assistant", content=self.answer(demo.output)))
        return messages

    def question(self, inputs: dict[str, JsonValue]) -> Message:
        """The last message: the row's fields, as they are."""
        return Message(role="user", content="\n".join(f"{_title(f)}: {_plain(inputs[f])}" for f in self.input_fields))

    def template(self) -> list[Message]:
        """The messages with {{double_braces}} for the row's fields, for people and prompt registries."""
        return self.render({field: "{{" + field + "}}" for field in self.input_fields})

    def answer(self, output: dict[str, JsonValue]) -> str:
        """An answer as the model is to write it: in the schema's order, where canonical JSON would sort the fields."""
        said = {field: output[field] for field in self.output_fields if field in output}
        return json.dumps(said, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def baseline(instructions: str, *, input_fields: tuple[str, ...], schema: OutputSchema) -> PromptVersion:
    """The prompt as the user wrote it: instructions, the shape of an answer, no demos."""
    properties = cast(dict[str, JsonValue], schema.json_schema.get("properties", {}))
    labels = ", ".join(schema.labels)
    return PromptVersion(
        instructions=instructions,
        answer_format=f"Answer in JSON with {', '.join(properties)}; {schema.decisive} is one of {labels}.",
        input_fields=input_fields,
        output_fields=tuple(properties),
    )


def _title(field: str) -> str:
    return field.replace("_", " ").capitalize()


def _plain(value: JsonValue) -> str:
    return value if isinstance(value, str) else canonical(value).decode()
