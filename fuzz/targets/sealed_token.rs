#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::sealed_token(data));
