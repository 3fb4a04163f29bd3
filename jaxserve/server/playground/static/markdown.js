// A little of Markdown as a plain tree: code, headings, lists, emphasis. No links, no images and no
// HTML: what a model says stays text. Every expression is linear in the length of a line.

const FENCE = /^ {0,3}```\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6}) +(.*)$/;
const ITEM = /^( *)(?:[-*+]|(\d{1,9})[.)]) +(.*)$/;
const SPAN = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*/g;

/** Return the blocks of a text; one that is not finished yet is read as far as it goes. */
export function parse(text) {
  const blocks = [];
  let paragraph = null;
  let fence = null;
  for (const line of text.split("\n")) {
    const fenced = FENCE.exec(line);
    if (fence) {
      if (fenced && !fenced[1]) fence = null;
      else fence.lines.push(line);
      continue;
    }
    if (fenced) {
      fence = { type: "code", language: fenced[1], lines: [] };
      blocks.push(fence);
      paragraph = null;
      continue;
    }
    const heading = HEADING.exec(line);
    const item = ITEM.exec(line);
    if (heading) {
      blocks.push({ type: "heading", level: heading[1].length, spans: spans(heading[2]) });
      paragraph = null;
    } else if (item) {
      addItem(blocks, item);
      paragraph = null;
    } else if (!line.trim()) {
      paragraph = null;
    } else if (paragraph) {
      paragraph.lines.push(line);
    } else {
      paragraph = { type: "paragraph", lines: [line] };
      blocks.push(paragraph);
    }
  }
  return blocks.map(finished);
}

function addItem(blocks, [, indent, number, text]) {
  const last = blocks.at(-1);
  const isOrdered = number !== undefined;
  const item = { depth: Math.min(4, indent.length >> 1), spans: spans(text) };
  if (last?.type === "list" && (last.isOrdered === isOrdered || item.depth)) last.items.push(item);
  else blocks.push({ type: "list", isOrdered, start: Number(number ?? 1), items: [item] });
}

function finished(block) {
  if (block.type === "code") {
    return { type: "code", language: block.language, text: block.lines.join("\n") };
  }
  if (block.type === "paragraph") return { type: "paragraph", spans: spans(block.lines.join("\n")) };
  return block;
}

/** Cut a text into strings and {type, text}. */
export function spans(text) {
  const found = [];
  let end = 0;
  for (const match of text.matchAll(SPAN)) {
    if (match.index > end) found.push(text.slice(end, match.index));
    const [, code, strong, em] = match;
    if (code !== undefined) found.push({ type: "code", text: code });
    else if (strong !== undefined) found.push({ type: "strong", text: strong });
    else found.push({ type: "em", text: em });
    end = match.index + match[0].length;
  }
  if (end < text.length) found.push(text.slice(end));
  return found;
}
