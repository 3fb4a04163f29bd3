// Making elements. Children that are strings become text, never markup.

/** Make an element; `onclick` and the like are listeners, null and false leave an attribute out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Return the element with an id. */
export const byId = (id) => document.getElementById(id);

/** Put blocks of markdown.js into an element, in place of what it held. */
export function showMarkdown(element, blocks) {
  element.replaceChildren(...blocks.map(blockElement));
}

function blockElement(block) {
  switch (block.type) {
    case "code":
      return h(
        "pre",
        { tabindex: "0", "aria-label": `code ${block.language}`.trim(), role: "region" },
        h("code", {}, block.text),
      );
    case "heading":
      // The page's own headings are of levels 1 and 2.
      return h(`h${Math.min(6, block.level + 2)}`, {}, ...block.spans.map(spanNode));
    case "list":
      return h(
        block.isOrdered ? "ol" : "ul",
        { start: block.isOrdered && block.start !== 1 ? block.start : null },
        ...block.items.map(({ depth, spans }) =>
          h("li", { "data-depth": depth || null }, ...spans.map(spanNode)),
        ),
      );
    default:
      return h("p", {}, ...block.spans.map(spanNode));
  }
}

function spanNode(span) {
  return typeof span === "string" ? span : h(span.type, {}, span.text);
}
