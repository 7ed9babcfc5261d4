/** A zip of pictures, stored as they are: PNGs do not get smaller. Pure, over bytes. */

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let rest = byte;
  for (let bit = 0; bit < 8; bit += 1) rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
  return rest;
});

function crc32(bytes) {
  let rest = 0xffffffff;
  for (const byte of bytes) rest = TABLE[(rest ^ byte) & 255] ^ (rest >>> 8);
  return (rest ^ 0xffffffff) >>> 0;
}

/** Pack [{name, bytes}] into a Blob (PKWARE's APPNOTE 6.3, method 0, no zip64: under 4 GB). */
export function zip(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, bytes } of files) {
    const title = new TextEncoder().encode(name);
    const sizes = [[bytes.length, 4], [bytes.length, 4], [title.length, 2], [0, 2]];
    const common = fixed([20, 2], [0x0800, 2], [0, 2], [0, 2], [0x21, 2], [crc32(bytes), 4], ...sizes);
    const local = [fixed([0x04034b50, 4]), common, title, bytes];
    directory.push(fixed([0x02014b50, 4], [20, 2]), common, fixed([0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), title);
    parts.push(...local);
    offset += local.reduce((sum, part) => sum + part.length, 0);
  }
  const length = directory.reduce((sum, part) => sum + part.length, 0);
  const counts = [[files.length, 2], [files.length, 2]];
  const end = fixed([0x06054b50, 4], [0, 2], [0, 2], ...counts, [length, 4], [offset, 4], [0, 2]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** Little-endian numbers of given widths, in bytes. */
function fixed(...numbers) {
  const view = new DataView(new ArrayBuffer(numbers.reduce((sum, [, width]) => sum + width, 0)));
  let at = 0;
  for (const [value, width] of numbers) {
    if (width === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += width;
  }
  return new Uint8Array(view.buffer);
}
