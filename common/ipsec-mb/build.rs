//! Compiles the few lines of C that know the library's structures, and links the library.

fn main() {
    println!("cargo::rerun-if-changed=src/shim.c");
    #[cfg(feature = "system")]
    {
        cc::Build::new().file("src/shim.c").warnings_into_errors(true).compile("mobikex_ipsec_mb");
        println!("cargo::rustc-link-lib=IPSec_MB");
    }
}
