use fsm_fastpath::loader::objects::{Objects, Sizes};
#[test]
fn load() {
    let dir = std::path::Path::new("/tmp/w/bpffs/v1");
    match Objects::load(dir, Sizes { flows: 1024 }) {
        Ok(mut o) => println!("flag {:?}", o.csum_ipv6_flag()),
        Err(e) => {
            let s = format!("{e:?}");
            std::fs::write("/tmp/w/verr.txt", s.replace("\\n", "\n")).unwrap();
            panic!("{}", e.to_string().chars().take(300).collect::<String>())
        }
    }
}
