/**
 * Takes what must not be repeated out of texts that a server chose.
 *
 * A server that works as documented never repeats a value; this holds for the others.
 */

/** Shorter values are refused by the server, and cutting them out would garble ordinary words. */
const SHORTEST = 8;

/** Makes a function that replaces each of these values by a mark. */
export function redactor(values: readonly string[]): (text: string) => string {
  const sorted = values
    .filter((value) => value.length >= SHORTEST)
    // The longest first: one value may be part of another.
    .sort((a, b) => b.length - a.length);
  return (text) =>
    sorted.reduce((rest, value) => rest.replaceAll(value, () => "[redacted]"), text);
}
