/** Version of this package, as sent in the `user-agent` header; a test holds it to package.json. */
export const VERSION = "0.1.0";
