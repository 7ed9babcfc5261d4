/** A picture on its way from another page to the form. */

let waiting = null;

/** Open the form with a picture to start from. */
export function send(file) {
  waiting = file;
  location.hash = "#create";
}

/** Take the picture that was sent, once; null for none. */
export function taken() {
  const file = waiting;
  waiting = null;
  return file;
}
