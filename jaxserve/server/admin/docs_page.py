"""Render the OpenAPI document as one HTML page, without scripts or external resources."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ info.title }} {{ info.version }}</title>
<style>
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
         color: #1a1a1a; background: #fff }
  h2 { font-size: 1rem; display: inline } code { font-size: .9rem }
  details { border-bottom: 1px solid #ccc; padding: .5rem 0 }
  table { border-collapse: collapse; width: 100% }
  td, th { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0 }
  .method { display: inline-block; min-width: 4.5rem; font-weight: bold }
  @media (prefers-color-scheme: dark) { body { color: #eee; background: #111 } a { color: #8cf } }
</style>
<main>
<h1>{{ info.title }} {{ info.version }}</h1>
<p>{{ info.summary }} The same for programs: <a href="openapi.json">openapi.json</a>.</p>
{% for path, methods in paths.items() %}{% for method, operation in methods.items() %}
<details>
  <summary><h2><span class="method">{{ method | upper }}</span> <code>{{ path }}</code></h2>
    {{ operation.summary }}</summary>
  {% if operation.description %}<p>{{ operation.description }}</p>{% endif %}
  {% for parameter in operation.parameters %}{% if loop.first %}<h3>Parameters</h3><ul>{% endif %}
    <li><code>{{ parameter.name }}</code> ({{ parameter.in }}): {{ kind(parameter.schema) }}</li>
  {% if loop.last %}</ul>{% endif %}{% endfor %}
  {% if operation.requestBody %}{% for media, body in operation.requestBody.content.items() %}
  <h3>Body, {{ media }}</h3>
  {% for shape in shapes(body.schema) %}{{ fields(shape) }}{% endfor %}{% endfor %}{% endif %}
  {% for media, answer in operation.responses["200"].content.items() %}
  <h3>Answer, {{ media }}</h3>
  {% for shape in shapes(answer["x-event"] or answer.schema) %}{{ fields(shape) }}{% endfor %}
  {% endfor %}
</details>
{% endfor %}{% endfor %}
</main>
</html>
"""
FIELDS = """\
{% if shape.description %}<p>{{ shape.description }}</p>{% endif %}
{% if shape.properties %}<table><tr><th>field</th><th>kind</th><th></th></tr>
{% for name, field in shape.properties.items() %}<tr><td><code>{{ name }}</code></td>
<td>{{ kind(field) }}</td><td>{{ "required" if name in (shape.required or ()) }}</td></tr>
{% endfor %}</table>{% else %}<p>{{ kind(shape) }}</p>{% endif %}
"""
MAX_DEPTH = 3
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}


def render_docs(document: Mapping[str, Any]) -> str:
    """Return the HTML page of a document."""
    schemas = document["components"]["schemas"]
    environment = Environment(autoescape=True)
    fields = environment.from_string(FIELDS)

    def shapes(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the object types that a schema allows."""
        if "$ref" in schema:
            return [schemas[schema["$ref"].rpartition("/")[2]]]
        return [shape for option in schema.get("anyOf", ()) for shape in shapes(option)] or [schema]

    def kind(schema: Mapping[str, Any], depth: int = MAX_DEPTH) -> str:
        """Return a short description of a schema."""
        # Null is left out, because all fields accept it.
        options = [
            option
            for option in schema.get("anyOf", schema.get("oneOf", ()))
            if option.get("type") != "null"
        ]
        if "$ref" in schema:
            return str(schema["$ref"]).rpartition(".")[2]
        if options and depth:
            return " or ".join(dict.fromkeys(kind(option, depth - 1) for option in options))
        if "enum" in schema or "const" in schema:
            return ", ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
        if schema.get("type") == "array" and isinstance(schema.get("items"), dict) and depth:
            return f"list of {kind(schema['items'], depth - 1)}"
        limits = [f"{word} {schema[name]}" for name, word in LIMITS.items() if name in schema]
        return " ".join([str(schema.get("type", "anything")), *limits])

    def render_fields(shape: Mapping[str, Any]) -> Any:
        return Markup(fields.render(shape=shape, kind=kind))  # noqa: S704 (rendered with autoescape)

    return environment.from_string(PAGE).render(
        **document, kind=kind, shapes=shapes, fields=render_fields
    )
