/* What only the library's header knows: the sizes of its structures, and the functions that fit the processor, which
 * are members of its manager. */

#include <stddef.h>
#include <stdint.h>
#include <intel-ipsec-mb.h>

#if IMB_VERSION_NUM < IMB_VERSION(1, 3, 0)
#error "libipsec-mb 1.3 or later is needed"
#endif

/* Octets and alignment of a key that is ready for use. */
size_t mobikex_imb_key_size(void) { return sizeof(struct gcm_key_data); }
size_t mobikex_imb_key_align(void) { return _Alignof(struct gcm_key_data); }

/* A manager with the best functions that this processor has; NULL when it has none or they compute wrongly, which the
 * library finds out itself. */
void *mobikex_imb_manager(void)
{
        IMB_ARCH arch = IMB_ARCH_NONE;
        IMB_MGR *manager = alloc_mb_mgr(0);

        if (manager == NULL)
                return NULL;
        init_mb_mgr_auto(manager, &arch);
        if (imb_get_errno(manager) != 0 || arch == IMB_ARCH_NONE || arch == IMB_ARCH_NOAESNI) {
                free_mb_mgr(manager);
                return NULL;
        }
        return manager;
}

void mobikex_imb_key(const void *manager, int long_key, const uint8_t *key, void *made)
{
        const IMB_MGR *m = manager;

        if (long_key)
                IMB_AES256_GCM_PRE(m, key, (struct gcm_key_data *) made);
        else
                IMB_AES128_GCM_PRE(m, key, (struct gcm_key_data *) made);
}

void mobikex_imb_seal(const void *manager, int long_key, const void *made, uint8_t *text, uint64_t len,
                      const uint8_t *nonce, const uint8_t *aad, uint64_t aad_len, uint8_t *tag)
{
        const IMB_MGR *m = manager;
        const struct gcm_key_data *key = made;
        struct gcm_context_data context;

        if (long_key)
                IMB_AES256_GCM_ENC(m, key, &context, text, text, len, nonce, aad, aad_len, tag, 16);
        else
                IMB_AES128_GCM_ENC(m, key, &context, text, text, len, nonce, aad, aad_len, tag, 16);
}

/* Writes the tag that the text should have had. */
void mobikex_imb_open(const void *manager, int long_key, const void *made, uint8_t *text, uint64_t len,
                      const uint8_t *nonce, const uint8_t *aad, uint64_t aad_len, uint8_t *tag)
{
        const IMB_MGR *m = manager;
        const struct gcm_key_data *key = made;
        struct gcm_context_data context;

        if (long_key)
                IMB_AES256_GCM_DEC(m, key, &context, text, text, len, nonce, aad, aad_len, tag, 16);
        else
                IMB_AES128_GCM_DEC(m, key, &context, text, text, len, nonce, aad, aad_len, tag, 16);
}
